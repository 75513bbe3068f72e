# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' trainers with the mixin: the same bits at rho = 0, for every way a loss can be computed."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam import SAMConfig
from tests.clients.runs import (
    BOTH_SCOPES,
    assert_logs_are_of_the_clean_pass,
    assert_plain_at_rho_zero,
    assert_trains,
    everything,
    loss_parameters,
    mostly_slow,
)
from tests.covering import covering
from tests.promises.runs import differences

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoder

from tests.clients.st_trainers import (
    KINDS,
    LOSSES,
    OWN_PARAMETERS,
    PAIR_LOSSES,
    maker,
    two_data_sets,
    two_losses,
)


@pytest.mark.parametrize(
    ("loss", "accumulation", "scope"),
    covering(
        product(LOSSES, (1, 2), ("batch", "micro_batch")),
        fast=[("softmax", 2, "batch")],
        slow=[*((kind, 2, "batch") for kind in KINDS), ("cached", 2, "micro_batch"), ("softmax", 1, "micro_batch")],
    ),
)
def test_rho_zero_is_the_plain_trainer_with_every_loss(
    loss: str, accumulation: int, scope: str, tmp_path: Path
) -> None:
    plain = assert_plain_at_rho_zero(maker(tmp_path, loss=loss), scope, accumulation)
    assert bool(loss_parameters(plain)) == (loss in OWN_PARAMETERS)


@pytest.mark.parametrize(
    ("loss", "accumulation", "scope"),
    covering(
        product(PAIR_LOSSES, (1, 2), ("batch", "micro_batch")),
        slow=[("cross-entropy", 2, "batch"), ("cached", 2, "micro_batch")],
    ),
)
def test_rho_zero_is_the_plain_cross_encoder_trainer(loss: str, accumulation: int, scope: str, tmp_path: Path) -> None:
    assert_plain_at_rho_zero(maker(tmp_path, loss=loss, pair=True), scope, accumulation)


@pytest.mark.parametrize("loss", mostly_slow(["two parts", "cached", "softmax"], "two parts"))
@BOTH_SCOPES
def test_what_is_logged_is_the_clean_pass(loss: str, scope: str, tmp_path: Path) -> None:
    assert_logs_are_of_the_clean_pass(maker(tmp_path, loss=loss), scope)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["no_duplicates", "batch_sampler"])
@pytest.mark.parametrize("turns", ["round_robin", "proportional"])
def test_several_data_sets_each_with_its_loss(sampler: str, turns: str, tmp_path: Path) -> None:
    make = maker(tmp_path, rows=two_data_sets(), build=two_losses)
    settings: dict[str, Any] = {"batch_sampler": sampler, "multi_dataset_batch_sampler": turns, "max_steps": 4}
    plain = assert_plain_at_rho_zero(make, accumulation=2, **settings)
    assert loss_parameters(plain)


@pytest.mark.parametrize("loss", mostly_slow(OWN_PARAMETERS, "softmax"))
@BOTH_SCOPES
def test_the_weights_of_a_loss_are_trained_perturbed_and_brought_back(loss: str, scope: str, tmp_path: Path) -> None:
    sam = SAMConfig(rho=0.5, sam_scope=scope, sam_check_repeatable="off")
    trainer = maker(tmp_path, loss=loss)(sam, gradient_accumulation_steps=2)
    of_loss = loss_parameters(trainer)
    seen: list[tuple[bool, list[torch.Tensor]]] = []
    compute = trainer.compute_loss

    def watching(*args: Any, **kwargs: Any) -> Any:
        seen.append((trainer.in_descent_pass, [p.detach().clone() for p in of_loss.values()]))
        return compute(*args, **kwargs)

    trainer.compute_loss, trainer.carried = watching, ("compute_loss",)
    trainer.train()
    clean = [weights for descent, weights in seen if not descent]
    perturbed = [weights for descent, weights in seen if descent]
    assert len(clean) == len(perturbed) == 2 * trainer.state.global_step
    for i, name in enumerate(of_loss):
        stays = ".pooler." in name  # BERT's, which a sentence's embedding does not go through
        assert torch.equal(clean[0][i], perturbed[0][i]) == stays, name
        assert torch.equal(clean[0][i], clean[2][i]) == stays, name  # the optimizer's step
        assert torch.equal(clean[0][i], clean[1][i]), name  # the same window


@pytest.mark.slow
def test_it_trains_and_loads_as_a_sentence_transformer(tmp_path: Path) -> None:
    trainer = assert_trains(maker(tmp_path, loss="cosent"), max_steps=12, save_strategy="steps", save_steps=12)
    trainer.save_model(str(tmp_path / "final"))
    texts = ["w1 w2 w3", "w30 w5"]
    for folder in ("checkpoint-12", "final"):
        loaded = SentenceTransformer(str(tmp_path / folder), device="cpu")
        assert (loaded.encode(texts) == trainer.model.encode(texts)).all()


@pytest.mark.slow
def test_it_trains_and_loads_as_a_cross_encoder(tmp_path: Path) -> None:
    make = maker(tmp_path, loss="cross-entropy", pair=True)
    trainer = assert_trains(make, max_steps=12, save_strategy="steps", save_steps=12)
    texts = [("w1 w2 w3", "w30 w5"), ("w3", "w1 w1")]
    loaded = CrossEncoder(str(tmp_path / "checkpoint-12"), device="cpu")
    assert (loaded.predict(texts) == trainer.model.predict(texts)).all()


@pytest.mark.slow
@pytest.mark.parametrize("pair", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_bits(pair: bool, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    whole = maker(tmp_path, pair=pair)(SAMConfig(rho=0.1), **settings)
    whole.train()
    expected = everything(whole)
    again = maker(tmp_path, pair=pair)(SAMConfig(rho=0.1), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert differences(expected, everything(again)) in ([], ["logs"])  # the last entry has the mean loss


@pytest.mark.slow
def test_the_best_model_comes_back_at_the_end(tmp_path: Path) -> None:
    from datasets import Dataset

    from tests.clients.st_trainers import pairs

    settings: dict[str, Any] = {
        "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.3,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False,
    }  # fmt: skip
    trainer = maker(tmp_path, extra={"eval_dataset": Dataset.from_dict(pairs())})(SAMConfig(rho=0.1), **settings)
    trainer.train()
    best = SentenceTransformer(trainer.state.best_model_checkpoint, device="cpu").state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in trainer.model.state_dict().items())
    last = SentenceTransformer(str(tmp_path / "checkpoint-3"), device="cpu").state_dict()
    assert any(not torch.equal(best[name], last[name]) for name in best)  # the last one was another one
