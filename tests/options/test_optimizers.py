# SPDX-License-Identifier: Apache-2.0
"""Does every optimizer stay the user's: those of `optim=`, of other packages, and those handed over?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForSequenceClassification, Trainer

from hf_sam import SAMConfig
from tests.models import build
from tests.options.pairs import Climbing, assert_climbs_at_rho, assert_plain_at_rho_zero, parts, trainer_on
from tests.promises.runs import fingerprint

BUILT_IN = ["adamw_torch_fused", "adagrad"]  # tests/promises has sgd, adamw_torch and adafactor
FROM_PACKAGES = {
    "rmsprop": "torch",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_sgd": "schedulefree",
    "schedule_free_radam": "schedulefree",
    "stable_adamw": "optimi",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_4bit": "torchao",
    "adamw_bnb_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "ademamix_8bit": "bitsandbytes",
    "lion_8bit": "bitsandbytes",
    "lion_32bit": "bitsandbytes",
    "rmsprop_bnb_8bit": "bitsandbytes",
    "grokadamw": "grokadamw",
}
CLASSES = (Trainer, Climbing)


def wide(**config: Any) -> nn.Module:
    """Return a model with matrices of 8192 elements: 8-bit optimizers keep the state of smaller ones in 32 bits."""
    sizes = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 32}
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes, **config),
    )


def settings_of(optim: str) -> dict[str, Any]:
    # RAdam's first steps, before its variance is known, are none at all.
    return {"optim": optim, "max_steps": 8, "num_train_epochs": 2} if "radam" in optim else {"optim": optim}


def assert_stays_the_users(tmp_path: Any, **settings: Any) -> tuple[Any, Any]:
    """Train plainly, with rho = 0 and with rho > 0; the same bits, and the same keys in the optimizer's state."""
    data = build("bert")[1]

    def make(sam: SAMConfig | None) -> Trainer:
        given = settings.get("given")
        model = wide()
        rest = {key: value for key, value in settings.items() if key != "given"}
        extra = {"trainer_kwargs": given(model)} if given is not None else {}
        return trainer_on(model, data, tmp_path, sam=sam, classes=CLASSES, **extra, **rest)

    plain, _ = assert_plain_at_rho_zero(make)
    sharp = assert_climbs_at_rho(make)
    keys = [sorted(entry) for entry in plain.optimizer.state_dict()["state"].values()]
    assert keys == [sorted(entry) for entry in sharp.optimizer.state_dict()["state"].values()]
    return plain, sharp


@pytest.mark.slow
@pytest.mark.parametrize("optim", BUILT_IN)
def test_an_optimizer_that_comes_with_transformers(optim: str, tmp_path: Any) -> None:
    assert_stays_the_users(tmp_path, optim=optim)


@pytest.mark.slow
@pytest.mark.parametrize("optim", FROM_PACKAGES)
def test_an_optimizer_of_another_package(optim: str, tmp_path: Any) -> None:
    pytest.importorskip(FROM_PACKAGES[optim])
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step, which takes half a minute
        plain, _ = assert_stays_the_users(tmp_path, **settings_of(optim))
    if "8bit" in optim:  # it is the 8-bit path that ran
        values = [value for state in plain.optimizer.optimizer.state.values() for value in state.values()]
        found = {part.dtype for value in values if torch.is_tensor(value) for part in parts(value)}
        assert torch.uint8 in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Lion", pytest.param("CAME", marks=pytest.mark.slow)])
def test_an_optimizer_handed_over_with_its_scheduler(name: str, tmp_path: Any) -> None:
    optimizers = pytest.importorskip("pytorch_optimizer")

    def given(model: nn.Module) -> dict[str, Any]:
        optimizer = getattr(optimizers, name)(model.parameters(), lr=1e-2)
        return {"optimizers": (optimizer, LambdaLR(optimizer, lambda step: 1.0 / (1 + step)))}

    assert_stays_the_users(tmp_path, given=given)


def test_an_optimizer_handed_over_as_a_class(tmp_path: Any) -> None:
    def given(model: nn.Module) -> dict[str, Any]:
        del model
        return {"optimizer_cls_and_kwargs": (torch.optim.NAdam, {"lr": 1e-2, "foreach": True})}

    plain, _ = assert_stays_the_users(tmp_path, given=given)
    assert type(plain.optimizer.optimizer) is torch.optim.NAdam


class Counted(torch.optim.SGD):
    """SGD that looks at what it is given when it steps."""

    def step(self, closure: Any = None) -> Any:
        self.seen = [*getattr(self, "seen", []), [p.grad.clone() for g in self.param_groups for p in g["params"]]]
        return super().step(closure)


def test_one_step_per_window_with_all_gradients_present(tmp_path: Any) -> None:
    data = build("bert")[1]
    model = wide()
    optimizer = Counted(model.parameters(), lr=1e-2)
    kwargs = {"optimizers": (optimizer, None)}
    trainer = trainer_on(model, data, tmp_path, sam=SAMConfig(rho=0.1), classes=CLASSES, trainer_kwargs=kwargs)
    trainer.train()
    assert len(optimizer.seen) == trainer.state.global_step == 4
    assert all(torch.isfinite(g).all() for step in optimizer.seen for g in step)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_a_schedule_free_optimizer_swaps_its_weights_for_evaluation_and_saving_only(rho: float, tmp_path: Any) -> None:
    """Between training and evaluation it moves the weights in place: SAM's copy must be of those it trains from."""
    pytest.importorskip("schedulefree")
    data = build("bert")[1]

    def run(often: bool) -> dict[str, Any]:
        looking = (
            {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1} if often else {}
        )
        kwargs = {"eval_dataset": data[:4]}
        sam = SAMConfig(rho=rho)
        # An evaluation draws a seed for its data loader, so that with dropout the runs would differ.
        model = wide(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer = trainer_on(
            model, data, tmp_path, sam=sam, optim="schedule_free_adamw", trainer_kwargs=kwargs, **looking
        )
        trainer.train()
        trainer.optimizer.optimizer.train()
        found = fingerprint(trainer)
        return {name: value for name, value in found.items() if name.startswith("weight")}

    looked, unseen = run(True), run(False)
    # There and back again rounds, so the bits are not those of a run that nobody looked at.
    assert max((looked[name] - unseen[name]).abs().max().item() for name in unseen) < 1e-4
