# SPDX-License-Identifier: Apache-2.0
"""Does the callback log flatness at the right steps, and is the run the one without it, to the bit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.sharpness import SharpnessAnalyzer, SharpnessCallback
from tests.sharpness.models import build
from tests.sharpness.test_terms import ctc

RUNS = {"plain": None, "rho 0": SAMConfig(rho=0.0), "sam": SAMConfig(rho=0.05)}


def trained(tmp_path: Path, config: SAMConfig | None, every: int | None, **settings: Any) -> Trainer:
    model, examples = build("vit")
    args = TrainingArguments(
        str(tmp_path), max_steps=5, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    kind = {} if config is None else {"sam_config": config}
    trainer = (Trainer if config is None else SAMTrainer)(
        model.float(), args, train_dataset=as_floats(examples), eval_dataset=as_floats(examples), **kind
    )
    if every:
        trainer.add_callback(SharpnessCallback(trainer, every, **settings))
    trainer.train()
    return trainer


def as_floats(examples: Any) -> Any:
    return [{**e, "pixel_values": e["pixel_values"].float()} for e in examples]


def logs(trainer: Trainer) -> list[dict[str, float]]:
    kept = [{k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k} for row in
            trainer.state.log_history]  # fmt: skip
    return [row for row in kept if not any("sharpness/l" in key or key == "sharpness/sam" for key in row)]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_the_run_is_the_same_bits(tmp_path: Path, run: str) -> None:
    without, beside = trained(tmp_path, RUNS[run], None), trained(tmp_path, RUNS[run], 2)
    streams = torch.get_rng_state()
    for (name, a), b in zip(without.model.state_dict().items(), beside.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert logs(without) == logs(beside)
    assert torch.equal(streams, torch.get_rng_state())
    for a, b in zip(without.optimizer.state.values(), beside.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_values_are_logged_at_the_beginning_and_every_so_many_steps(tmp_path: Path) -> None:
    measures = ["loss", "gradient_norm", "lambda_max", "sam", "worst_case", "trace"]
    trainer = trained(tmp_path, None, 2, measures=measures, max_examples=4)
    rows = [row for row in trainer.state.log_history if "sharpness/lambda_max" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert all(f"sharpness/{name}" in row for row in rows for name in measures)
    model, examples = build("vit")
    one = SharpnessAnalyzer(model.float(), as_floats(examples), max_examples=4)
    assert rows[0]["sharpness/loss"] == one.loss()
    assert rows[0]["sharpness/lambda_max"] == one.top_eigenvalues().values[0]
    assert rows[0]["sharpness/sam"] == one.sam_sharpness(0.05).value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=...\\)` must be a whole number"),
        ({"rho": -1}, "rho=...\\)` must be a finite number >= 0"),
        ({"measures": ["flatness"]}, "measures=...\\)` must be one of"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    model, examples = build("bert")
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = Trainer(model, args, train_dataset=examples, eval_dataset=examples)
    with pytest.raises(ValueError, match=message):
        SharpnessCallback(trainer, **settings)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match=r"dataset=...\)` must be given"):
        SharpnessCallback(trainer)


class Weighted(SAMTrainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        out = model(**inputs)
        loss = torch.nn.functional.cross_entropy(out.logits, labels, weight=torch.tensor([1.0, 9.0, 2.0]))
        return (loss, out) if return_outputs else loss


def focal(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    each = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="none")
    return ((1 - each.neg().exp()) ** 2 * each).mean()


def once_only(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return ctc(outputs["logits"])


def one_of(kind: str, tmp_path: Path, **settings: Any) -> Trainer:
    model, examples = build("vit")
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, per_device_eval_batch_size=9, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        label_smoothing_factor=0.3 if kind == "smoothed" else 0.0,
    )  # fmt: skip
    rows = as_floats(examples)
    return (Weighted if kind == "weighted" else SAMTrainer)(
        model.float(), args, train_dataset=rows, eval_dataset=rows, sam_config=SAMConfig(rho=0.05), **settings
    )


@pytest.mark.parametrize("kind", ["own", "smoothed", "weighted", "focal"])
def test_the_loss_is_the_one_that_the_trainer_evaluates(kind: str, tmp_path: Path) -> None:
    trainer = one_of(kind, tmp_path, compute_loss_func=focal if kind == "focal" else None)
    expected = trainer.evaluate()["eval_loss"]
    for size in (9, 2):
        callback = SharpnessCallback(trainer, measures=["loss"], batch_size=size)
        assert callback.measure()["sharpness/loss"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured_is_said_once_and_never_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = one_of("own", tmp_path, compute_loss_func=once_only)
    trainer.add_callback(SharpnessCallback(trainer, every=1))
    with caplog.at_level("WARNING", logger="hf_sam"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert sum("sharpness/sam" in row for row in trainer.state.log_history) == 3
    assert not any("sharpness/lambda_max" in row for row in trainer.state.log_history)
    said = [r.getMessage() for r in caplog.records if "logs no sharpness/lambda_max" in r.getMessage()]
    assert len(said) == 1
    assert "no second derivative" in said[0]


def test_a_loss_that_belongs_to_its_batch_is_measured_by_batches_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def contrastive(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        z = outputs["logits"]
        return torch.nn.functional.cross_entropy(z @ z.T, torch.arange(len(z)))

    trainer = one_of("own", tmp_path, compute_loss_func=contrastive)
    with caplog.at_level("WARNING", logger="hf_sam"):
        found = SharpnessCallback(trainer, measures=["loss"], batch_size=3).measure()
    trainer.args.per_device_eval_batch_size = 3
    assert found["sharpness/loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    assert "losses of batches of 3 examples" in caplog.text
