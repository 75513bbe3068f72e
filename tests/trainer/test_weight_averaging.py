# SPDX-License-Identifier: Apache-2.0
"""Does `WeightAveraging` leave the mean of the later weights in the model, and the run itself alone?"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_sam import SAMConfig, WeightAveraging
from hf_sam.trainer.weight_averaging import FILE
from tests.compare import bits, relative_error, same_bits
from tests.promises.runs import trainer_for

FEW = {"max_steps": 6, "per_device_train_batch_size": 2}


class Record(TrainerCallback):
    """Keep the weights and the buffers after every optimizer step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        self.states.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})


def run(folder: Any, *more: Any, family: str = "bert", sam: Any = None, resume: Any = None, **arguments: Any) -> Any:
    record = Record()
    callbacks = {"callbacks": [record, *more]}
    trainer = trainer_for(family, folder, sam=sam, trainer_kwargs=callbacks, **{**FEW, **arguments})
    trainer.train(resume_from_checkpoint=resume)
    return trainer, record.states


def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}


def close(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    pairs = [(model.state_dict()[name].double(), tensor) for name, tensor in expected.items()]
    return relative_error([a for a, _ in pairs], [e for _, e in pairs]) < 1e-6


@pytest.mark.parametrize("sam", [None, SAMConfig(rho=0.1)], ids=["plain", "sam"])
def test_the_model_ends_as_the_mean_of_the_last_half_and_the_run_keeps_its_bits(sam: Any, tmp_path: Path) -> None:
    plain, expected = run(tmp_path, sam=sam)
    trainer, states = run(tmp_path, WeightAveraging(), sam=sam)
    assert all(same_bits(bits(a.values()), bits(b.values())) for a, b in zip(states, expected, strict=True))
    assert [e.get("loss") for e in trainer.state.log_history] == [e.get("loss") for e in plain.state.log_history]
    assert close(trainer.model, mean(states[3:]))
    assert not close(trainer.model, states[-1])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "lora", "t5"])
@pytest.mark.parametrize("sam", [SAMConfig(rho=0.1), SAMConfig(rho=0.1, sam_variant="momentum")], ids=["sam", "msam"])
def test_so_it_does_with_running_statistics_adapters_and_accumulation(sam: Any, family: str, tmp_path: Path) -> None:
    more = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 6}
    trainer, states = run(tmp_path, WeightAveraging(), family=family, sam=sam, **more)
    expected = mean(states[3:])
    counted = {name for name in expected if name.endswith("num_batches_tracked")}
    assert close(trainer.model, {name: tensor for name, tensor in expected.items() if name not in counted})
    assert all(torch.equal(trainer.model.state_dict()[name], states[-1][name]) for name in counted)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    buffers = {name for name, buffer in trainer.model.named_buffers() if buffer.is_floating_point()}
    assert load_file(tmp_path / "checkpoint-6" / FILE).keys() == trained | buffers


@pytest.mark.slow
def test_start_every_and_decay_say_which_steps_count_and_how_much(tmp_path: Path) -> None:
    trainer, states = run(tmp_path, WeightAveraging(start=0.2, every=2))  # begins after step 1: steps 3 and 5
    assert close(trainer.model, mean([states[2], states[4]]))
    trainer, states = run(tmp_path, WeightAveraging(start=0.5, decay=0.9))
    expected = {n: 0.81 * states[3][n].double() + 0.09 * states[4][n] + 0.1 * states[5][n] for n in states[0]}
    assert close(trainer.model, expected)


@pytest.mark.slow
def test_weights_of_16_bits_are_averaged_in_32(tmp_path: Path) -> None:
    sixteen = {"prepare": lambda model: model.to(torch.bfloat16), "save_strategy": "steps", "save_steps": 6}
    run(tmp_path, WeightAveraging(), **sixteen)
    kept = load_file(tmp_path / "checkpoint-6" / FILE)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


@pytest.mark.slow
def test_what_is_saved_afterwards_is_the_average_and_a_checkpoint_has_the_weights_of_its_step(tmp_path: Path) -> None:
    trainer, states = run(tmp_path, WeightAveraging(), save_strategy="steps", save_steps=6)
    trainer.save_model(str(tmp_path / "end"))
    saved = type(trainer.model).from_pretrained(tmp_path / "end")
    assert same_bits(bits(saved.state_dict().values()), bits(trainer.model.state_dict().values()))
    checkpoint = type(trainer.model).from_pretrained(tmp_path / "checkpoint-6")
    assert same_bits(bits(checkpoint.state_dict().values()), bits(states[-1].values()))


@pytest.mark.slow
@pytest.mark.parametrize("sam", [None, SAMConfig(rho=0.1)], ids=["plain", "sam"])
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_run_ends_in_the_same_bits(step: int, sam: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole, _ = run(tmp_path, WeightAveraging(), sam=sam, **saving)
    checkpoint = tmp_path / f"checkpoint-{step}"
    assert (checkpoint / FILE).is_file() == (step > 3)
    resumed, _ = run(tmp_path, WeightAveraging(), sam=sam, resume=str(checkpoint), **saving)
    assert same_bits(bits(resumed.model.state_dict().values()), bits(whole.model.state_dict().values()))


@pytest.mark.slow
def test_a_resume_without_the_average_is_refused(tmp_path: Path) -> None:
    run(tmp_path, save_strategy="steps", save_steps=5)
    with pytest.raises(ValueError, match="is not there, is damaged"):
        run(tmp_path, WeightAveraging(), resume=str(tmp_path / "checkpoint-5"))
    (tmp_path / "checkpoint-5" / FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is not there, is damaged"):
        run(tmp_path, WeightAveraging(), resume=str(tmp_path / "checkpoint-5"))
    shutil.rmtree(tmp_path / "checkpoint-5")
    run(tmp_path, WeightAveraging(), save_strategy="steps", save_steps=5)
    with pytest.raises(ValueError, match="the average of another model"):
        WeightAveraging()._load(tmp_path / "checkpoint-5" / FILE, nn.Linear(2, 2), 5)


def test_a_run_that_loads_its_best_step_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(
        "bert", tmp_path, sam=None, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch",
        trainer_kwargs={"callbacks": [WeightAveraging()], "eval_dataset": [{}]},
    )  # fmt: skip
    with pytest.raises(ValueError, match="load_best_model_at_end=True"):
        trainer.train()


def test_a_run_that_ends_before_the_average_begins_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer, states = run(tmp_path, WeightAveraging(), Stop())
    assert "the run ended at step 1, and the average begins after step 3" in caplog.text
    assert same_bits(bits(trainer.model.state_dict().values()), bits(states[-1].values()))


@pytest.mark.parametrize(
    ("given", "error"),
    [({"start": 1}, ValueError), ({"start": -0.1}, ValueError), ({"decay": 1.0}, ValueError),
     ({"decay": "0.9"}, TypeError), ({"every": 0}, ValueError)],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"`WeightAveraging\({next(iter(given))}=...\)` must be"):
        WeightAveraging(**given)
