# SPDX-License-Identifier: Apache-2.0
"""Which ways to take a sharpness-aware step survive accumulation, autocast, resuming, and the Trainer?"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, TrainingArguments

from hf_sam.cli.common.errors import one_line
from scripts.benchmarks.common.peers import Peer

STEPS = 3
Batch = dict[str, Tensor]


def checks(kind: type[Peer]) -> dict[str, str]:
    """Return what happened, by check: "exact", a difference of the weights, or the error."""
    tried: dict[str, Callable[[type[Peer]], str]] = {
        "accumulation": accumulation,
        "bf16 autocast around the step": autocast,
        "dropout masks": random_numbers,
        "resume from its state_dict": resume,
        "in the Trainer": in_the_trainer,
    }
    found = {}
    for name, check in tried.items():
        try:
            found[name] = check(kind)
        except Exception as error:  # noqa: BLE001 - whatever kind of error it is, it is the result
            found[name] = f"{type(error).__name__}: {one_line(error)}"[:90]
    return found


def accumulation(kind: type[Peer]) -> str:
    """Take steps on a batch, and on its quarters; the closure runs all of them."""
    whole, parts = model(), model()
    for one, pieces in ((whole, 1), (parts, 4)):
        peer = kind(one)
        for step in range(STEPS):
            chunks = [{k: v.chunk(pieces)[i] for k, v in batch(step).items()} for i in range(pieces)]
            peer.step(lambda one=one, chunks=chunks: run(one, chunks))  # type: ignore[misc]
    return difference(whole, parts)


def autocast(kind: type[Peer]) -> str:
    """Is a context around both passes the same as one in each? The casts that it keeps can hide the perturbation."""

    def second_gradient(outer: bool, inner: bool) -> Tensor:
        one, last = model(torch.float32), torch.zeros(0)

        def closure() -> Tensor:
            nonlocal last
            one.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if inner else nullcontext():
                loss = run(one, [batch(0)])
            last = torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
            return loss

        peer = kind(one)
        with torch.autocast("cpu", torch.bfloat16) if outer else nullcontext():
            peer.step(closure)
        return last

    expected, found = second_gradient(False, True), second_gradient(True, False)
    off = float((found - expected).norm() / expected.norm())
    return "exact" if off == 0 else f"second gradient off by {100 * off:.0f} %"


def random_numbers(kind: type[Peer]) -> str:
    """Do both passes draw the same random numbers? Else the second one sees another function."""
    one, drawn = model(), []

    def closure() -> Tensor:
        drawn.append(float(torch.rand(())))
        return run(one, [batch(0)])

    kind(one).step(closure)
    return "the same in both passes" if drawn[0] == drawn[1] else "others in the second pass"


def resume(kind: type[Peer]) -> str:
    """Stop after some steps, load model and optimizer anew, go on."""
    through, first = model(), model()
    peer = kind(through)
    for step in range(2 * STEPS):
        peer.step(lambda step=step: run(through, [batch(step)]))  # type: ignore[misc]
    before = kind(first)
    for step in range(STEPS):
        before.step(lambda step=step: run(first, [batch(step)]))  # type: ignore[misc]
    second = model()
    second.load_state_dict(first.state_dict())
    after = kind(second)
    after.optimizer.load_state_dict(copy.deepcopy(before.optimizer.state_dict()))
    for step in range(STEPS, 2 * STEPS):
        after.step(lambda step=step: run(second, [batch(step)]))  # type: ignore[misc]
    return difference(through, second)


def in_the_trainer(kind: type[Peer]) -> str:
    """Is a step taken there? SAM as an optimizer needs a closure, which the Trainer does not give."""
    one = model(torch.float32)
    data = [{k: v[0] for k, v in batch(i).items()} for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no",
            save_strategy="no", per_device_train_batch_size=2,
        )  # fmt: skip
        trainer = kind(one).trainer(args, data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return "runs"


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a small BERT without dropout, always the same."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    made: Any = BertForSequenceClassification(config)
    return made.to(dtype)


def batch(number: int) -> Batch:
    """Return eight rows of random tokens."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(100, (8, 12), generator=generator)
    return {"input_ids": tokens, "labels": torch.randint(2, (8,), generator=generator)}


def run(one: nn.Module, chunks: list[Batch]) -> Tensor:
    """Run forward and backward over the micro-batches of one step; the optimizer's gradients are cleared first."""
    one.zero_grad()
    total = torch.zeros(())
    for chunk in chunks:
        loss = one(**chunk).loss / len(chunks)
        loss.backward()
        total = total + loss.detach()
    return total


def difference(one: nn.Module, other: nn.Module) -> str:
    """Return the largest difference of the weights, as people read it."""
    largest = max(
        float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
    return "exact" if largest == 0 else f"differs by {largest:.0e}"
