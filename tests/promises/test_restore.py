# SPDX-License-Identifier: Apache-2.0
"""Promises 3 and 5: the weights come back exactly, whatever happens, and nobody sees them perturbed."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from tests.covering import covering
from tests.promises.runs import trainer_for

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


class Witness(TrainerCallback):
    """Looks at the weights at every event; only the optimizer may have changed them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.known: dict[str, torch.Tensor] | None = None

    def _look(self, event: str, model: nn.Module) -> None:
        self.events.append(event)
        if self.known is not None and event != "on_optimizer_step":
            assert same(model, self.known), f"the weights changed before {event}"
        self.known = snapshot(model)


for _event in [name for name in dir(TrainerCallback) if name.startswith("on_")]:

    def _handler(self: Witness, args: Any, state: Any, control: Any, *, _event: str = _event, **kwargs: Any) -> None:
        if kwargs.get("model") is not None:
            self._look(_event, kwargs["model"])

    setattr(Witness, _event, _handler)


WITNESSED = ("bert", "llama", "mixtral", "resnet", "lora")


@pytest.mark.parametrize(
    ("family", "variant", "scope"),
    covering(
        product(WITNESSED, ["sam", "asam"], ["batch", "micro_batch"]),
        fast=[("bert", "sam", "batch"), ("resnet", "asam", "micro_batch")],
        slow=[
            *((family, "sam", "batch") for family in WITNESSED[1:]),
            *(("bert", *rest) for rest in (("sam", "micro_batch"), ("asam", "batch"), ("asam", "micro_batch"))),
        ],
    ),
)
def test_no_callback_ever_sees_perturbed_weights(family: str, variant: str, scope: str, tmp_path: Any) -> None:
    witness = Witness()
    trainer = trainer_for(
        family,
        tmp_path,
        sam=SAMConfig(rho=0.5, sam_variant=variant, sam_scope=scope),
        gradient_accumulation_steps=2,
        trainer_kwargs={"callbacks": [witness]},
    )
    trainer.train()
    assert {"on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"} <= set(witness.events)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "dtype"),
    covering(
        product(["sam", "asam"], DTYPES),
        fast=[("sam", torch.float32), ("asam", torch.bfloat16)],
        slow=[("sam", torch.float16), ("sam", torch.bfloat16)],
    ),
)
def test_with_learning_rate_zero_training_moves_nothing(variant: str, dtype: torch.dtype, tmp_path: Any) -> None:
    trainer = trainer_for(
        "llama",
        tmp_path,
        sam=SAMConfig(rho=0.5, sam_variant=variant),
        prepare=lambda model: model.to(dtype),
        learning_rate=0.0,
        optim="sgd",
    )
    before = snapshot(trainer.model)
    addresses = [p.data_ptr() for p in trainer.model.parameters()]
    trainer.train()
    assert same(trainer.model, before)
    assert [p.data_ptr() for p in trainer.model.parameters()] == addresses


class Accident(Exception):
    pass


class Faulty(SAMTrainer):
    """Fails in the descent pass of optimizer step 2, at `context`."""

    context = ""
    error: type[BaseException] = Accident

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        due = self.in_descent_pass and self.state.global_step == 2
        if due and self.context == "before forward":
            raise self.error
        handle = None
        if due and self.context == "in forward":
            layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
            handle = layers[len(layers) // 2].register_forward_hook(self._fail)
        try:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            if handle is not None:
                handle.remove()
        if due and self.context == "in backward":
            loss.register_hook(self._fail)
        return loss

    def _fail(self, *args: Any) -> None:
        raise self.error

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.before = snapshot(self.model)
        return super().training_step(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        if self.in_descent_pass and self.state.global_step == 2 and self.context == "while preparing inputs":
            raise self.error
        return super()._prepare_inputs(inputs)


ERRORS = [Accident, KeyboardInterrupt, torch.cuda.OutOfMemoryError]
CONTEXTS = ["while preparing inputs", "before forward", "in forward", "in backward"]


# Every error in every place, and each of both with every type.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "context", "error"),
    covering(
        product(DTYPES, CONTEXTS, ERRORS),
        fast=[(DTYPES[(i + j) % 3], CONTEXTS[i], ERRORS[j]) for i in range(4) for j in range(3)],
    ),
)
def test_an_error_in_the_descent_pass_leaves_the_weights_where_they_were(
    dtype: torch.dtype, context: str, error: type[BaseException], tmp_path: Any
) -> None:
    faulty = type("Faulty", (Faulty,), {"context": context, "error": error})
    trainer = trainer_for(
        "bert",
        tmp_path,
        sam=SAMConfig(rho=0.5),
        classes=(SAMTrainer, faulty),
        gradient_accumulation_steps=2,
        prepare=lambda model: model.to(dtype),
        learning_rate=1e-2,
        optim="sgd",  # the unfused AdamW divides by zero in float16
    )
    with pytest.raises(error):
        trainer.train()
    assert trainer.state.global_step == 2
    assert same(trainer.model, trainer.before)
    assert not trainer.in_descent_pass


@pytest.mark.slow
def test_training_goes_on_as_if_nothing_had_happened_after_an_error(tmp_path: Any) -> None:
    """A notebook user interrupts and calls train() again: no gradient, window or state of the old run is left."""
    faulty = type("Faulty", (Faulty,), {"context": "in forward"})
    settings = {"classes": (SAMTrainer, faulty), "gradient_accumulation_steps": 2}
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.5), **settings)
    with pytest.raises(Accident):
        trainer.train()
    middle = {name: p.clone() for name, p in trainer.model.state_dict().items()}
    trainer.context = ""
    trainer.optimizer = trainer.lr_scheduler = None
    torch.manual_seed(5)
    trainer.train()
    fresh = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.5), **settings)
    fresh.context = ""
    fresh.model.load_state_dict(middle)
    torch.manual_seed(5)
    fresh.train()
    assert same(fresh.model, snapshot(trainer.model))


class Crowded(SAMTrainer):
    """Runs out of memory in the descent pass whenever a micro-batch has more than three examples."""

    carried = ("at_failure", "sizes", "start")

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.in_descent_pass and len(inputs["labels"]) > 3:
            self.at_failure.append((snapshot(self.model), self.start))
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(args[1]["labels"]))
        return super().training_step(*args, **kwargs)


@pytest.mark.slow
def test_auto_find_batch_size_starts_again_from_unperturbed_weights(tmp_path: Any) -> None:
    trainer = trainer_for(
        "bert",
        tmp_path,
        sam=SAMConfig(rho=0.5, sam_check_repeatable="off"),
        classes=(SAMTrainer, Crowded),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        auto_find_batch_size=True,
        learning_rate=0.0,
        optim="sgd",
    )
    trainer.at_failure, trainer.sizes = [], []
    trainer.start = snapshot(trainer.model)
    trainer.train()
    assert trainer.at_failure  # it did fail, and there the weights were perturbed
    assert not all(torch.equal(seen[n], start[n]) for seen, start in trainer.at_failure for n in seen)
    assert same(trainer.model, trainer.start)
    assert max(trainer.sizes[-4:]) <= 3
    assert trainer.state.global_step == trainer.state.max_steps


class Branches(nn.Module):
    """Two parameters used only in one of the passes, one in neither, two tied."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.shared.weight
        self.first_only = nn.Linear(4, 1)
        self.second_only = nn.Linear(4, 1)
        self.unused = nn.Linear(4, 4)
        self.start = self.shared.weight.detach().clone()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        head = self.first_only if torch.equal(self.shared.weight, self.start) else self.second_only
        return {"loss": (head(self.tied(torch.tanh(self.shared(x)))).squeeze(-1) - labels).square().mean()}


def test_parameters_used_in_one_pass_only_come_back_and_unused_ones_stay_without_gradient(tmp_path: Any) -> None:
    from transformers import TrainingArguments

    model = Branches()
    data = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(8)]
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=0.0)
    trainer = SAMTrainer(model, args, sam_config=SAMConfig(rho=0.5), train_dataset=data)
    before = snapshot(model)
    trainer.create_optimizer()
    batch = {"x": torch.randn(4, 4), "labels": torch.randn(4)}
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(model, batch)
    assert same(model, before)
    has_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert has_gradient == {"shared", "tied", "second_only"}
