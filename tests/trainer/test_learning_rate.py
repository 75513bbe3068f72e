# SPDX-License-Identifier: Apache-2.0
"""Do the radius and the gate follow the learning rate that a run really has, whoever schedules it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as S
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup, set_seed

from hf_sam import SAMConfig, SAMTrainer
from tests.promises.runs import differences, fingerprint

RHO, STEPS = 0.05, 8


class Net(nn.Module):
    """A small classifier that is no PreTrainedModel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.body(x).tanh())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(count: int = 32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(6, generator=generator), "labels": i % 3} for i in range(count)]


def trainer_with(
    folder: Path, config: SAMConfig | None, make: Any = None, *, cls: type = SAMTrainer, **arguments: Any
) -> Trainer:
    settings = {"max_steps": STEPS, "learning_rate": 0.05, "logging_steps": 1, "save_strategy": "no", **arguments}
    settings |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8}
    args = TrainingArguments(str(folder), optim="sgd", optim_args="momentum=0.9", **settings)
    set_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) if make else None
    pair = (optimizer, make(optimizer) if make else None)
    kwargs = {"train_dataset": examples(), "eval_dataset": examples(8), "optimizers": pair}
    if config is None:
        return Trainer(model, args, **kwargs)
    return cls(model, args, sam_config=config, **kwargs)


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def one_cycle(optimizer: Any) -> Any:
    return S.OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS + 1)


def cyclic(optimizer: Any) -> Any:
    return S.CyclicLR(optimizer, base_lr=0.001, max_lr=0.05, step_size_up=3)


def warm_then_cosine(optimizer: Any) -> Any:
    parts = [S.LinearLR(optimizer, 0.1, total_iters=3), S.CosineAnnealingLR(optimizer, STEPS)]
    return S.SequentialLR(optimizer, parts, milestones=[3])


def by_hand(optimizer: Any) -> Any:
    return get_cosine_schedule_with_warmup(optimizer, 3, STEPS)


@pytest.mark.parametrize("make", [one_cycle, cyclic, warm_then_cosine], ids=lambda f: f.__name__)
def test_the_radius_is_rho_at_the_runs_peak_and_its_share_elsewhere(make: Any, tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, SAMConfig(rho=RHO, rho_schedule="lr"), make)
    trainer.train()
    rates, radii = logged(trainer, "learning_rate"), logged(trainer, "sam/rho")
    assert radii == pytest.approx([RHO * lr / max(rates) for lr in rates])
    assert max(radii) == pytest.approx(RHO)


def test_a_plateau_that_lowers_the_learning_rate_lowers_the_radius(tmp_path: Path) -> None:
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
    options = {"lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "mode": "max"}}
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "greater_is_better": False}
    trainer = trainer_with(tmp_path, SAMConfig(rho=RHO, rho_schedule="lr"), **plateau, **options, **evaluated)
    trainer.train()
    rates, radii = logged(trainer, "learning_rate"), logged(trainer, "sam/rho")
    assert min(rates) < max(rates) == 0.05
    assert radii == pytest.approx([RHO * lr / 0.05 for lr in rates])


@pytest.mark.parametrize("make", [by_hand, warm_then_cosine, cyclic], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "settings", [{"sam_start": "warmup"}, {"rho_schedule": "warmup"}, {"sam_variant": "momentum"}], ids=str
)
def test_a_warm_up_of_ones_own_counts(settings: dict[str, Any], make: Any, tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, SAMConfig(rho=RHO, **settings), make)
    trainer.train()
    assert logged(trainer, "sam/perturbed") == [0.0] * 3 + [1.0] * (STEPS - 3)


def test_the_trainers_own_warm_up_is_its_arguments(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, SAMConfig(rho=RHO, sam_start="warmup"), warmup_steps=2)
    trainer.train()
    assert logged(trainer, "sam/perturbed") == [0.0] * 2 + [1.0] * (STEPS - 2)


def test_a_warm_up_that_a_subclass_puts_before_the_trainers_scheduler_counts(tmp_path: Path) -> None:
    class Warming(SAMTrainer):
        def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
            own = super().create_scheduler(*args, **kwargs)
            first = S.LinearLR(self.optimizer, 0.1, total_iters=3)
            self.lr_scheduler = S.SequentialLR(self.optimizer, [first, own], milestones=[3])
            return self.lr_scheduler

    trainer = trainer_with(tmp_path, SAMConfig(rho=RHO, sam_start="warmup"), cls=Warming)
    trainer.train()
    assert logged(trainer, "sam/perturbed") == [0.0] * 3 + [1.0] * (STEPS - 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [one_cycle, warm_then_cosine, "plateau"], ids=["one cycle", "warm then cosine", "plateau"]
)
def test_a_resumed_run_has_the_same_radii(make: Any, tmp_path: Path) -> None:
    """The first learning rate that a resumed run has seen is not the run's peak."""
    saved = {"save_strategy": "steps", "save_steps": 5}
    if make == "plateau":
        saved |= {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss", "eval_steps": 1}
        saved |= {"lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "mode": "max"}, "eval_strategy": "steps"}
        make = None
    for settings in ({"rho_schedule": "lr"}, {"sam_variant": "momentum"}):
        config = SAMConfig(rho=RHO, **settings)
        whole = trainer_with(tmp_path / "a", config, make, **saved)
        whole.train()
        resumed = trainer_with(tmp_path / "b", config, make, **saved)
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
        assert logged(whole, "sam/rho") == logged(resumed, "sam/rho")
        names = differences(fingerprint(whole), fingerprint(resumed))
        assert not [name for name in names if name != "logs"]
