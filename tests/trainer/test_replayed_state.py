# SPDX-License-Identifier: Apache-2.0
"""Does whatever a pass changes start the second pass as it started the first, and end as the plain Trainer's?"""

from __future__ import annotations

import copy
import logging
from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer, SAMTrainerMixin
from tests.compare import relative_error
from tests.tolerances import RELATIVE

cross_entropy = nn.functional.cross_entropy


class Net(nn.Module):
    """A classifier with nothing that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.body(x)))
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


class Momentum(Net):
    """A momentum encoder, a queue and a counter, all changed in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.calls = copy.deepcopy(self.body).requires_grad_(False), 0
        self.register_buffer("queue", torch.zeros(2, 6))
        self.register_buffer("top", torch.empty(0))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        for key, query in zip(self.keys.parameters(), self.body.parameters(), strict=True):
            key.data.mul_(0.9).add_(query.data, alpha=0.1)
        if self.top.numel() == 0:
            self.top.resize_(6).zero_()
        hidden = torch.tanh(self.body(x))
        self.top.copy_(torch.maximum(self.top, hidden.detach().abs().amax(0)))
        logits = self.head(hidden * (1 + 0.1 * self.calls) - self.queue.mean(0) - self.keys(x).detach() + self.top)
        self.queue = torch.cat([self.queue[1:], hidden.detach().mean(0, keepdim=True)])
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class InPlace(Trainer):
    """Mixes its batch in place."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        weight = float(np.random.beta(0.8, 0.8))
        inputs["x"].mul_(weight).add_(inputs["x"].flip(0).clone(), alpha=1 - weight)
        return super().compute_loss(model, inputs, *args, **kwargs)


class Drawing(Trainer):
    """Draws from generators of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.streams = [np.random.default_rng(0), np.random.RandomState(0)], torch.Generator().manual_seed(0)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        (first, second), third = self.streams
        factor = first.random() + second.random() + float(torch.rand((), generator=third))
        return super().compute_loss(model, inputs, *args, **kwargs) * factor


class Remembering(Trainer):
    """Keeps a state of every kind on the trainer, and begins to count late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.targets, self.counts, self.last, self.late = torch.zeros(3), Counter(), deque([0.0], maxlen=2), 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        logits = model(x=inputs["x"])["logits"]
        self.counts["calls"] += 1
        self.late += self.state.global_step >= 4
        self.targets.lerp_(logits.detach().mean(0), 0.1)
        loss = cross_entropy(logits - self.targets * (self.counts["calls"] + self.late), inputs["labels"])
        loss = loss * (1 + self.last[-1])
        self.last.append(loss.item())
        return loss


class Teaching(Trainer):
    """Moves a teacher of its own, which asks for gradients as the student that it was copied from does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = copy.deepcopy(self.model)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 0.3).add_(0.01)
            expected = self.teacher(inputs["x"])["logits"]
        logits = model(x=inputs["x"])["logits"]
        return cross_entropy(logits, inputs["labels"]) + (logits - expected).square().mean()


class Globally(Trainer):
    """Counts where nothing looks."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        CALLS.append(1)
        return super().compute_loss(model, inputs, *args, **kwargs) * (1 + 0.1 * len(CALLS))


CALLS: list[int] = []
KINDS = {
    "batch": (InPlace, Net),
    "streams": (Drawing, Net),
    "trainer": (Remembering, Net),
    "teacher": (Teaching, Net),
    "model": (Trainer, Momentum),
}


def trained(cls: type, model: type[nn.Module], folder: Any, sam: SAMConfig | None = None, **settings: Any) -> Any:
    set_seed(0)
    CALLS.clear()
    data = [{"x": torch.randn(4), "labels": i % 3} for i in range(48)]
    arguments = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "optim": "sgd",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        **settings,
    }
    args = TrainingArguments(str(folder), remove_unused_columns=False, **arguments)
    kind = cls if sam is None or issubclass(cls, SAMTrainerMixin) else type("Sharp", (SAMTrainerMixin, cls), {})
    trainer = kind(model(), args, train_dataset=data, **({} if sam is None else {"sam_config": sam}))
    trainer.train()
    return trainer


def state_of(trainer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow)])
def test_at_rho_zero_everything_is_as_the_plain_trainers(kind: str, settings: Any, tmp_path: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        plain = trained(*KINDS[kind], tmp_path, **settings)
        sharp = trained(*KINDS[kind], tmp_path, SAMConfig(rho=0.0), **settings)
    expected, found = state_of(plain), state_of(sharp)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    rises = [log["sam/sharpness"] for log in sharp.state.log_history if "sam/sharpness" in log]
    assert rises == [0.0] * len(rises)
    assert not [r for r in caplog.records if "second pass" in r.getMessage()]
    if kind == "trainer":
        assert (sharp.counts, sharp.last, sharp.late) == (plain.counts, plain.last, plain.late)


def test_what_cannot_be_replayed_is_told_once(tmp_path: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trained(Globally, Net, tmp_path, SAMConfig(rho=0.05))
    told = [r.getMessage() for r in caplog.records if "second pass" in r.getMessage()]
    assert len(told) == 1
    assert "`replayed_state()`" in told[0]


def test_what_cannot_be_replayed_ends_the_run_where_that_is_asked_for(tmp_path: Any) -> None:
    with pytest.raises(RuntimeError, match="second pass is not the function"):
        trained(Globally, Net, tmp_path, SAMConfig(rho=0.05, sam_check_repeatable="error"))


def test_a_named_object_is_replayed(tmp_path: Any) -> None:
    class Calls:
        def state_dict(self) -> dict[str, int]:
            return {"calls": len(CALLS)}

        def load_state_dict(self, state: dict[str, int]) -> None:
            CALLS[:] = [1] * state["calls"]

    class Named(SAMTrainerMixin, Globally):
        def replayed_state(self) -> list[Any]:
            return [Calls()]

    plain = trained(Globally, Net, tmp_path)
    sharp = trained(Named, Net, tmp_path, SAMConfig(rho=0.0, sam_check_repeatable="error"))
    assert torch.equal(plain.model.head.weight, sharp.model.head.weight)


class EarlyLearning:
    """Early-learning regularisation (Liu et al. 2020): running targets for each example, moved by each call."""

    def __init__(self, count: int) -> None:
        self.targets = torch.zeros(count, 3)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        rows, labels = labels[:, 0], labels[:, 1]
        shares = outputs["logits"].softmax(1)
        self.targets[rows] = 0.7 * self.targets[rows] + 0.3 * shares.detach()
        agreement = (self.targets[rows] * shares).sum(1)
        return cross_entropy(outputs["logits"], labels) + 3 * (1 - agreement.clamp(max=0.99)).log().mean()


def test_targets_of_each_example_are_moved_once(tmp_path: Any) -> None:
    def run(cls: type, **kwargs: Any) -> tuple[nn.Module, EarlyLearning]:
        set_seed(0)
        data = [{"x": torch.randn(4), "labels": torch.tensor([i, i % 3])} for i in range(24)]
        options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.1, "optim": "sgd"}
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        loss, model = EarlyLearning(24), Net()
        args = TrainingArguments(str(tmp_path), **options, **quiet)
        cls(model, args, train_dataset=data, compute_loss_func=loss, data_collator=together, **kwargs).train()
        return model, loss

    def together(rows: list[Any]) -> dict[str, Tensor]:
        return {"x": torch.stack([r["x"] for r in rows]), "labels": torch.stack([r["labels"] for r in rows])}

    (plain, moved), (sharp, found) = run(Trainer), run(SAMTrainer, sam_config=SAMConfig(rho=0.0))
    assert moved.targets.abs().sum() > 1
    assert torch.equal(moved.targets, found.targets)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), sharp.parameters(), strict=True))


@pytest.mark.slow
def test_prompts_that_write_into_their_batch_and_weights_train_as_in_the_plain_trainer(tmp_path: Any) -> None:
    """CPT adds to the types of the tokens in its forward pass, and projects its embeddings there."""
    peft = pytest.importorskip("peft")
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 32}
    prompt = {"cpt_token_ids": [1, 2, 3, 4], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 3]}
    weighted = {"opt_weighted_loss_type": "decay", "opt_projection_epsilon": 0.2, "opt_projection_format_epsilon": 0.1}
    found = []
    for sam in (None, SAMConfig(rho=0.0, sam_check_repeatable="error"), SAMConfig(rho=0.05)):
        set_seed(0)
        config = peft.CPTConfig(task_type="CAUSAL_LM", **prompt, **weighted)
        model = peft.get_peft_model(GPT2LMHeadModel(GPT2Config(**size)), config)
        ids = torch.randint(5, 32, (16, 8))
        kinds = {
            "attention_mask": torch.ones(8, dtype=torch.long),
            "input_type_mask": torch.tensor([1, 2, 2, 3, 1, 1, 2, 1]),
        }
        data = [{"input_ids": row, "labels": row.clone(), **{k: v.clone() for k, v in kinds.items()}} for row in ids]
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        args = TrainingArguments(str(tmp_path), max_steps=3, learning_rate=0.1, remove_unused_columns=False, **quiet)
        cls, kwargs = (Trainer, {}) if sam is None else (SAMTrainer, {"sam_config": sam})
        start = torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])
        cls(model, args, train_dataset=data, **kwargs).train()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
        assert not torch.equal(found[-1], start)
    # The second pass projects what the first has projected, which is the same but for rounding.
    assert relative_error([found[1]], [found[0]]) < RELATIVE[torch.float32]
    assert relative_error([found[2]], [found[0]]) > 100 * RELATIVE[torch.float32]
