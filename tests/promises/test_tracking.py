# SPDX-License-Identifier: Apache-2.0
"""SAM's settings and measurements reach the trackers, and a search can change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainingArguments

from hf_sam import SAMConfig, SAMTrainer, SAMTrainingArguments
from tests.models import build
from tests.promises.runs import trainer_for


@pytest.mark.slow
def test_tensorboard_gets_the_measurements_and_the_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.125), report_to="tensorboard", max_steps=3).train()
    (events,) = Path(tmp_path / "board").rglob("events*")
    board = EventAccumulator(str(events))
    board.Reload()
    assert {"train/sam/rho", "train/sam/sharpness", "train/sam/grad_cosine"} <= set(board.Tags()["scalars"])
    assert [e.value for e in board.Scalars("train/sam/rho")] == [0.125] * 3
    (text,) = board.Tensors("args/text_summary")
    settings = json.loads(text.tensor_proto.string_val[0])
    assert (settings["rho"], settings["sam_variant"], settings["sam_scope"]) == (0.125, "sam", "batch")


class Tracker(TrainerCallback):
    """What every tracker of transformers does: log `args.to_dict()` when training begins."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        self.seen.append(args.to_sanitized_dict())


@pytest.mark.parametrize("composed", [True, False])
def test_every_way_of_configuring_shows_the_settings_to_trackers(composed: bool, tmp_path: Any) -> None:
    model, data = build("bert")
    tracker, settings = Tracker(), {"use_cpu": True, "max_steps": 1, "report_to": "none", "disable_tqdm": True}
    if composed:
        args = TrainingArguments(str(tmp_path), **settings)
        trainer = SAMTrainer(model, args, sam_config=SAMConfig(rho=0.3), train_dataset=data, callbacks=[tracker])
        assert not hasattr(args, "rho")  # the user's own arguments are left alone
    else:
        args = SAMTrainingArguments(str(tmp_path), rho=0.3, **settings)
        trainer = SAMTrainer(model, args, train_dataset=data, callbacks=[tracker])
    trainer.train()
    assert tracker.seen[0]["rho"] == 0.3
    assert tracker.seen[0]["sam_variant"] == "sam"


def test_neither_given_means_the_defaults(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = build("bert")
    assert SAMTrainer(model, train_dataset=data).sam_config == SAMConfig()
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    assert SAMTrainer(model, args, train_dataset=data).sam_config == SAMConfig()


def test_both_given_is_an_error_before_anything_is_written(tmp_path: Any) -> None:
    model, data = build("bert")
    args = SAMTrainingArguments(str(tmp_path / "out"), rho=0.3, use_cpu=True)
    with pytest.raises(ValueError, match="`sam_config` was given beside `args`"):
        SAMTrainer(model, args, sam_config=SAMConfig(), train_dataset=data)
    assert not (tmp_path / "out").exists()


def test_variant_none_is_the_plain_trainer_in_one_pass(tmp_path: Any) -> None:
    from tests.promises.runs import differences, fingerprint

    plain = trainer_for("bert", tmp_path, sam=None)
    plain.train()
    expected = fingerprint(plain)
    none = trainer_for("bert", tmp_path, sam=SAMConfig(sam_variant="none"))
    calls = []
    none.model.register_forward_hook(lambda *_: calls.append(1))
    none.train()
    assert differences(expected, fingerprint(none)) == []
    assert len(calls) == none.state.max_steps
    assert not any(key.startswith("sam/") for entry in none.state.log_history for key in entry)


@pytest.mark.slow
def test_a_hyperparameter_search_over_rho_trains_with_each_rho(tmp_path: Any) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _, data = build("bert")
    args = SAMTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=1,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = SAMTrainer(model_init=lambda: build("bert")[0], args=args, train_dataset=data, eval_dataset=data)
    used = []
    trainer.add_callback(type("Seen", (TrainerCallback,), {"on_log": lambda s, a, st, c, logs, **k: used.append(logs)}))
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"rho": trial.suggest_categorical("rho", [0.25, 0.5])},
        n_trials=3,
        backend="optuna",
        compute_objective=lambda metrics: metrics["eval_loss"],
    )
    rhos = [logs["sam/rho"] for logs in used if "sam/rho" in logs]
    assert len(rhos) == 3
    assert set(rhos) <= {0.25, 0.5}
