# SPDX-License-Identifier: Apache-2.0
"""What has to hold for every direction under every setting it goes with? Driven by the dicts, for new ones too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_sam import VARIANTS, SAMConfig, SAMTrainer
from tests.compare import bits, same_bits
from tests.promises.runs import differences, fingerprint, trainer_for

# Every radius, gate, filter, scope and mixing, one setting at a time and some together.
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "warmup": {"rho_schedule": "warmup"},
    "linear": {"rho_schedule": "linear", "rho_schedule_kwargs": {"start": 0.5, "end": 1.5}},
    "cosine": {"rho_schedule": "cosine"},
    "lr": {"rho_schedule": "lr", "rho_schedule_kwargs": {"rho_min": 0.01}},
    "loss_budget": {"rho_schedule": "loss_budget", "rho_schedule_kwargs": {"sigma": 0.01}},
    "target_ascent": {"rho_schedule": "target_ascent", "rho_schedule_kwargs": {"target": 0.05}},
    "auto": {"rho": "auto"},
    "late": {"sam_start": 0.5},
    "early": {"sam_stop": 0.5},
    "after warm-up": {"sam_start": "warmup"},
    "every 2": {"sam_every": 2},
    "gradient_norm": {"sam_gate": "gradient_norm"},
    "norm": {"sam_parameters": "norm"},
    "no_norm": {"sam_parameters": "no_norm"},
    "last:1": {"sam_parameters": "last:1"},
    "regular expression": {"sam_parameters": r"attention.*weight"},
    "micro_batch": {"sam_scope": "micro_batch"},
    "device": {"sam_scope": "device"},
    "half the examples": {"ascent_fraction": 0.5},
    "an eighth": {"ascent_fraction": 0.125},
    "weighted": {"sam_sharpness_weight": 0.6},
    "renormalised": {"sam_renormalise": True},
    "stochastic": {"sam_rounding": "stochastic"},
    "cheap": {"ascent_fraction": 0.25, "sam_start": "warmup", "sam_parameters": "last:1", "sam_every": 2},
    "controlled part": {"ascent_fraction": 0.5, "rho_schedule": "loss_budget", "sam_scope": "micro_batch"},
    "mixed": {"sam_sharpness_weight": 2.0, "sam_renormalise": True, "rho_schedule": "loss_budget"},
}
# The same settings by the question that each answers, for combinations of several: the first answer is the default.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "radius": ("as it is", "warmup", "linear", "cosine", "lr", "loss_budget", "target_ascent", "auto"),
    "gate": ("as it is", "late", "early", "after warm-up", "every 2", "gradient_norm"),
    "parameters": ("as it is", "norm", "no_norm", "last:1", "regular expression"),
    "scope": ("as it is", "micro_batch", "device"),
    "examples": ("as it is", "half the examples", "an eighth"),
    "mixing": ("as it is", "weighted", "renormalised"),
    "rounding": ("as it is", "stochastic"),
}
STEPS, WARMUP = 6, 2
Chosen = tuple[str, ...]  # names of settings that are taken together


def settings_of(setting: str | Chosen) -> dict[str, Any]:
    names = (setting,) if isinstance(setting, str) else setting
    return {key: value for name in names for key, value in SETTINGS[name].items()}


def config_of(variant: str, setting: str | Chosen) -> SAMConfig | None:
    """Return the configuration; None if the library refuses the two together, which its message must say."""
    try:
        return SAMConfig(sam_variant=variant, **settings_of(setting))
    except ValueError as error:
        message = str(error)
        assert "does not go with" in message, message
        assert message.rstrip(".").split(". ")[-1].startswith(("Leave", "Use", "Set")), f"no way out: {message}"
        return None


class Watching(TrainerCallback):
    """Sees the weights whenever a callback may; notes those at which the optimizer has just arrived."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.at_rest: list[torch.Tensor] | None = None

    def _look(self) -> None:
        now = bits(self.trainer.model.parameters())
        assert self.at_rest is None or same_bits(now, self.at_rest), "the weights are not where the last step left them"

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self._look()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if VARIANTS[self.trainer.sam_config.sam_variant].passes != "plain":  # those change weights as decay does
            self._look()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.at_rest = bits(self.trainer.model.parameters())


def run(config: SAMConfig | None, folder: Path, *, family: str = "bert", resume: str | None = None, **more: Any) -> Any:
    """Train for STEPS steps of two micro-batches of four examples; return the trainer."""
    settings = {
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "warmup_steps": WARMUP,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "linear",
        **more,
    }
    watching = Watching()
    trainer = trainer_for(family, folder, sam=config, trainer_kwargs={"callbacks": [watching]}, **settings)
    watching.trainer = trainer
    if not isinstance(trainer, SAMTrainer):
        trainer.remove_callback(watching)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def result(trainer: Any) -> dict[str, Any]:
    """Return everything in which two finished runs could differ; not the summary, which a resumed run shortens."""
    found = fingerprint(trainer)
    logs = [sorted(entry.items()) for entry in found["logs"] if "train_loss" not in entry]  # files sort them
    return {**found, "logs": logs}


PLAIN: dict[str, dict[str, Any]] = {}  # by family: what the plain Trainer's run ends with


def plain_result(family: str, folder: Path) -> dict[str, Any]:
    if family not in PLAIN:
        PLAIN[family] = result(run(None, folder, family=family))
    return PLAIN[family]


def problems(variant: str, setting: str | Chosen, folder: Path, family: str = "bert") -> Iterator[str]:
    """Train with the setting; yield what is not as promised, nothing if all is well or the library refuses."""
    config = config_of(variant, setting)
    if config is None:
        return
    whole = run(config, folder / "whole", family=family)
    found = result(whole)
    if not all(p.isfinite().all() for p in whole.model.parameters()):
        yield "weights that are not finite"
    again = run(config, folder / "whole", family=family, resume=str(folder / "whole" / "checkpoint-3"))
    yield from (f"after resuming, {name} differs" for name in differences(found, result(again)))
    plain = plain_result(family, folder / "plain")
    moved = [name for name in differences(plain, found) if name.startswith("weight")]
    if not moved:
        yield "it does nothing"
    if VARIANTS[variant].passes == "plain":
        return
    at_zero = AT_ZERO.get(config.rho_schedule, {})
    zero = SAMConfig(sam_variant=variant, **{**settings_of(setting), **at_zero, "rho": 0.0})
    still = result(run(zero, folder / "zero", family=family))
    yield from (f"at rho = 0, {n} is not the plain Trainer's" for n in differences(plain, still) if n not in UNLIKE)


AT_ZERO: dict[str, dict[str, Any]] = {
    "lr": {"rho_schedule_kwargs": {"rho_min": 0.0}},
    "target_ascent": {"rho_schedule_kwargs": {"target": 0.05, "rho_min": 0.0, "rho_max": 0.0}},
}
UNLIKE = ("logs",)  # a part's loss, or that of a perturbed pass, is reported where the whole clean loss is not known
