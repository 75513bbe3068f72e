# SPDX-License-Identifier: Apache-2.0
"""Promise 10: stop at any step, resume, get the bits of the uninterrupted run, for directions with a memory too."""

from __future__ import annotations

import json
import logging
import signal
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from tests import warm
from tests.covering import covering
from tests.models import build
from tests.promises.resumable import complete_checkpoints
from tests.promises.runs import differences, fingerprint, trainer_for

RESUMABLE = "tests.promises.resumable"


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def run(folder: Path, *arguments: Any) -> int:
    code = warm.run(RESUMABLE, folder, *arguments, log=log_of(folder))
    if code not in (0, -signal.SIGKILL):
        pytest.fail(warm.end_of(log_of(folder)))
    return code


def final(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "final.pt", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sam", "asam", "remembering"])
def test_killed_in_a_descent_pass_and_resumed_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, "new", variant, 3, -1) == 0
    assert run(cut, "new", variant, 3, 7) == -signal.SIGKILL  # mid-epoch: an epoch has four steps
    assert not (cut / "final.pt").exists()
    assert complete_checkpoints(cut)[-1].name == "checkpoint-6"
    assert run(cut, "resume", variant, 3, -1) == 0
    assert differences(final(whole), final(cut)) == []


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    """Kill from outside, several times in one run, wherever the process then is: in a pass, a step or a save."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, "new", "remembering", 1, -1) == 0
    kills, mode = 0, "new"
    for n in range(4):
        process = warm.start(RESUMABLE, cut, mode, "remembering", 1, -1, log=log_of(cut))
        seen = len(complete_checkpoints(cut)) if cut.exists() else 0
        while process.exitcode is None and (len(complete_checkpoints(cut)) if cut.exists() else 0) <= seen:
            time.sleep(0.005)
        time.sleep(0.004 * n)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        mode = "resume"
    assert kills >= 2
    assert run(cut, "resume", "remembering", 1, -1) == 0
    assert differences(final(whole), final(cut)) == []


def resumed(
    tmp_path: Path, at: int, sam: SAMConfig, family: str = "bert", **settings: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fingerprints of an uninterrupted run and of one resumed at step `at`, without their logs."""
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1, **settings}
    whole = trainer_for(family, tmp_path / "whole", sam=sam, **settings)
    whole.train()
    expected = fingerprint(whole)
    again = trainer_for(family, tmp_path / "again", sam=sam, **settings)
    torch.rand(7)  # the streams are elsewhere: the checkpoint has to put them back
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{at}"))
    found = fingerprint(again)
    return ({k: v for k, v in f.items() if k != "logs"} for f in (expected, found))


# Every variant at every step, and both with each scope.
@pytest.mark.parametrize(
    ("variant", "at", "scope"),
    covering(
        product(["sam", "asam", "remembering"], [1, 4, 6], ["batch", "micro_batch"]),
        fast=[("remembering", 4, "batch"), ("sam", 1, "micro_batch")],
        slow=[
            *(("sam", 4, "batch"), ("sam", 6, "batch"), ("asam", 1, "batch"), ("asam", 4, "micro_batch")),
            *(("asam", 6, "micro_batch"), ("remembering", 1, "micro_batch"), ("remembering", 6, "batch")),
        ],
    ),
)
def test_a_resumed_run_ends_in_the_same_bits(variant: str, at: int, scope: str, tmp_path: Path) -> None:
    expected, found = resumed(tmp_path, at, SAMConfig(rho=0.2, sam_variant=variant, sam_scope=scope))
    assert differences(expected, found) == []


@pytest.mark.parametrize(
    "family", ["vit", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llama", "lora", "mixtral", "resnet", "t5"))]
)
def test_every_family_resumes_in_the_same_bits(family: str, tmp_path: Path) -> None:
    """ViT's tensors have other names in its files; the Trainer's own loading leaves them as they were."""
    expected, found = resumed(tmp_path, 4, SAMConfig(rho=0.2), family)
    assert differences(expected, found) == []


@pytest.mark.slow
def test_the_best_model_at_the_end_is_the_best_model(tmp_path: Path) -> None:
    _, data = build("vit")
    trainer = trainer_for(
        "vit",
        tmp_path,
        sam=SAMConfig(rho=0.2),
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the best is not the last
        max_steps=6,
        trainer_kwargs={"eval_dataset": data},
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"
    saved = type(trainer.model).from_pretrained(best).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.slow
def test_the_state_of_a_direction_matters(tmp_path: Path) -> None:
    """The test above could fail: without the saved state the run ends elsewhere."""
    sam = SAMConfig(rho=0.2, sam_variant="remembering")
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = trainer_for("bert", tmp_path, sam=sam, **settings)
    whole.train()
    for name in ("sam_state.json", "sam_state.safetensors"):
        (tmp_path / "checkpoint-4" / name).unlink()
    again = trainer_for("bert", tmp_path / "again", sam=sam, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert any(name.startswith("weight") for name in differences(fingerprint(whole), fingerprint(again)))


def checkpoint(tmp_path: Path, sam: SAMConfig | None) -> Path:
    trainer_for("bert", tmp_path, sam=sam, max_steps=2, save_strategy="steps", save_steps=1).train()
    return tmp_path / "checkpoint-1"


def test_our_state_is_json_and_safetensors(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, SAMConfig(rho=0.2, sam_variant="remembering"))
    content = json.loads((folder / "sam_state.json").read_text())
    assert content["config"] == asdict(SAMConfig(rho=0.2, sam_variant="remembering"))
    values = {name: value for name, value in content["values"].items() if not name.startswith("totals.")}
    assert values == {"variant.steps": 1}
    assert content["values"]["totals.steps"] == 1
    assert {p.name for p in folder.glob("*sam*")} == {"sam_state.json", "sam_state.safetensors"}


def test_a_second_run_starts_without_the_memory_of_the_first(tmp_path: Path) -> None:
    sam = SAMConfig(rho=0.2, sam_variant="remembering")
    trainer = trainer_for("bert", tmp_path, sam=sam, max_steps=3, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.train()
    values = json.loads((tmp_path / "checkpoint-3" / "sam_state.json").read_text())["values"]
    assert (values["variant.steps"], values["totals.steps"]) == (3, 3)


def test_a_checkpoint_of_the_plain_trainer_can_be_resumed_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(tmp_path, None)
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer = trainer_for("bert", tmp_path / "on", sam=SAMConfig(rho=0.2), max_steps=2)
        trainer.train(resume_from_checkpoint=str(folder))
    assert "No SAM state" in caplog.text


def test_other_settings_than_the_checkpoints_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoint(tmp_path, SAMConfig(rho=0.2))
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer = trainer_for("bert", tmp_path / "on", sam=SAMConfig(rho=0.1), max_steps=2)
        trainer.train(resume_from_checkpoint=str(folder))
    assert "rho was 0.2" in caplog.text
    assert "now it is 0.1" in caplog.text


def test_another_variants_state_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, SAMConfig(rho=0.2, sam_variant="remembering"))
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    trainer = trainer_for("bert", tmp_path / "on", sam=SAMConfig(rho=0.2), max_steps=2)
    with pytest.raises(ValueError, match="sam_variant"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 99}'])
def test_a_damaged_state_is_refused_with_the_way_out(damage: bytes, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, SAMConfig(rho=0.2))
    (folder / "sam_state.json").write_bytes(damage)
    trainer = trainer_for("bert", tmp_path / "on", sam=SAMConfig(rho=0.2), max_steps=2)
    with pytest.raises(ValueError, match="Resume from another checkpoint"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_save_only_model_saves_only_the_model(tmp_path: Path) -> None:
    trainer = trainer_for(
        "bert", tmp_path, sam=SAMConfig(), max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True
    )
    trainer.train()
    assert not list((tmp_path / "checkpoint-1").glob("sam_state*"))
    assert isinstance(trainer, SAMTrainer)


class Failing(SAMTrainer):
    """Fails in a pass of its third step, once."""

    error: type[BaseException] = KeyboardInterrupt
    failed = False

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2 and not self.failed and self.in_descent_pass:
            self.failed = True
            raise self.error("CUDA out of memory. In the middle of a pass.")  # so auto_find_batch_size knows it
        return super().compute_loss(*args, **kwargs)


class Surviving(Failing):
    """Leaves the batch out in which a pass failed, as many a trainer does when memory runs out."""

    error = RuntimeError

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().training_step(*args, **kwargs)
        except RuntimeError:
            self.model.zero_grad()
            return torch.zeros(())


def remembered(trainer: Any) -> dict[str, Any]:
    return {k: v.tolist() for k, v in trainer._sam.planner.state_dict().items() if isinstance(v, torch.Tensor)}


STATEFUL = SAMConfig(rho=0.05, rho_schedule="target_ascent")


def failing(cls: type, folder: Path, **arguments: Any) -> Any:
    return trainer_for("bert", folder, sam=STATEFUL, classes=(SAMTrainer, cls), max_steps=4, **arguments)


def test_an_error_in_a_pass_leaves_what_sam_remembers_to_be_saved(tmp_path: Path) -> None:
    whole = failing(SAMTrainer, tmp_path / "whole")
    whole.args.max_steps = 2
    whole.train()
    trainer = failing(Failing, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer._save_checkpoint(trainer.model, None)
    saved = load_file(tmp_path / "checkpoint-2" / "sam_state.safetensors")
    assert remembered(whole)["radius.rho"] != pytest.approx(STATEFUL.rho)
    assert saved["radius.rho"].tolist() == remembered(whole)["radius.rho"]


def test_an_error_that_the_users_trainer_survives_leaves_what_sam_remembers(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(remembered(trainer))

    trainer = failing(Surviving, tmp_path)
    trainer.add_callback(Look())
    trainer.train()
    assert trainer.failed
    assert seen[2] == seen[1]  # the third step was left out, and nothing begins anew
    assert seen[3] != seen[2]


def test_a_smaller_batch_is_tried_without_the_memory_of_the_larger_one(tmp_path: Path) -> None:
    class OutOfMemory(Failing):
        error = torch.OutOfMemoryError

    seen: list[Any] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((state.global_step, trainer._sam.planner and remembered(trainer)))

    trainer = failing(OutOfMemory, tmp_path, auto_find_batch_size=True)
    trainer.add_callback(Look())
    trainer.train()
    assert [step for step, _ in seen[:4]] == [0, 1, 2, 0]
    assert seen[2][1] is not None
    assert seen[3][1] is None
