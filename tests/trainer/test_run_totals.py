# SPDX-License-Identifier: Apache-2.0
"""Are the numbers about a whole run those of the whole run, also after a resume, and does the user see them?"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.trainer.run_totals import RunTotals
from tests.promises.runs import trainer_for

RUN = ("sam/run_perturbed", "sam/run_rho", "sam/run_last_rho", "sam/run_passes", "sam/run_sharpness")


def test_sums_of_two_parts_are_those_of_the_whole() -> None:
    first = RunTotals(4, 2, 6.0, 0.1, 2, 0.1, 0.4, 2, 3.0)
    later = RunTotals(6, 6, 12.0, 0.3, 6, 0.5, 1.8, 6, 2.0)
    whole = first.plus(later)
    assert asdict(whole) == pytest.approx(asdict(RunTotals(10, 8, 18.0, 0.25, 8, 0.5, 2.2, 8, 3.0)))
    assert first.plus(RunTotals()) == first
    assert RunTotals().plus(later) == later


def test_a_run_without_a_step_has_no_mean() -> None:
    assert RunTotals().summary(knows_rise=True) == dict.fromkeys(RUN, 0.0) | {"sam/run_passes": 1.0}


@pytest.mark.parametrize("bad", [{"totals.steps": "3"}, {"totals.steps": float("nan")}, {"totals.other": 1}])
def test_a_damaged_state_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the totals of the run are"):
        RunTotals.from_state({**RunTotals().state_dict(), **bad})


def test_a_checkpoint_without_totals_begins_them() -> None:
    assert RunTotals.from_state({"radius.rho": 1.0}) == RunTotals()


def test_a_short_run_shows_its_numbers_once_with_the_default_settings(tmp_path: Path) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05, sam_start=0.5), max_steps=4, logging_steps=500)
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        output = trainer.train()
    (line,) = [line for line in screen.getvalue().splitlines() if "sam/" in line]
    assert "train_runtime" in line
    assert {name: output.metrics[name] for name in RUN} == pytest.approx(
        {
            "sam/run_perturbed": 0.5,
            "sam/run_rho": 0.05,
            "sam/run_last_rho": 0.05,
            "sam/run_passes": 1.5,
            "sam/run_sharpness": output.metrics["sam/run_sharpness"],
        }
    )
    assert output.metrics["sam/run_sharpness"] > 0


@pytest.mark.parametrize(("variant", "passes"), [("momentum", 1.0), ("looksam", 1.25)])
def test_the_cost_is_that_of_the_variant(variant: str, passes: float, tmp_path: Path) -> None:
    options = {"k": 4} if variant == "looksam" else None
    sam = SAMConfig(rho=0.05, sam_variant=variant, sam_variant_kwargs=options)
    trainer = trainer_for("bert", tmp_path, sam=sam, max_steps=4, logging_steps=500)
    metrics = trainer.train().metrics
    assert metrics["sam/run_passes"] == passes
    assert metrics["sam/run_perturbed"] == (0.75 if variant == "momentum" else 0.25)
    assert ("sam/run_sharpness" in metrics) == (variant == "looksam")


def test_the_plain_trainer_logs_nothing_of_it(tmp_path: Path) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(sam_variant="none"), max_steps=1)
    assert not [key for key in trainer.train().metrics if key.startswith("sam/")]


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_resumed_run_says_what_the_whole_one_does(stopped_at: int, tmp_path: Path) -> None:
    """Between two logs and at one; the steps before the stop perturb, and those after it do not."""
    settings = {"max_steps": 6, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
    sam = SAMConfig(rho=0.05, sam_stop=0.5)
    whole = trainer_for("bert", tmp_path, sam=sam, **settings).train().metrics
    resumed = trainer_for("bert", tmp_path, sam=sam, **settings)
    found = resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped_at}")).metrics
    assert {name: found[name] for name in RUN} == pytest.approx({name: whole[name] for name in RUN}, rel=1e-6)
    assert found["sam/run_perturbed"] == 0.5


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), **settings).train()
    path = tmp_path / "checkpoint-2" / "sam_state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["values"] = {k: v for k, v in content["values"].items() if not k.startswith("totals.")}
    path.write_text(json.dumps(content), encoding="utf-8")
    resumed = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), **settings)
    assert resumed.train(resume_from_checkpoint=str(path.parent)).metrics["sam/run_perturbed"] == 1.0


def test_steps_of_an_attempt_that_was_given_up_are_not_counted(tmp_path: Path) -> None:
    class Crowded(SAMTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2 and len(inputs["labels"]) > 3:
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    settings = {"auto_find_batch_size": True, "per_device_train_batch_size": 4, "max_steps": 3}
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.05), classes=(SAMTrainer, Crowded), **settings)
    trainer.train()
    assert trainer._train_batch_size <= 3
    assert trainer._sam.averages.totals.steps == trainer.state.global_step == 3
