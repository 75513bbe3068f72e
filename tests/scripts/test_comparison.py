# SPDX-License-Identifier: Apache-2.0
"""Is the plain run of a comparison the one that `--sam_variant none` is, and does the other one not notice it?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_sam.cli.common import comparison
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import parse
from tests.floor import resumes_bert_plainly

Run = Callable[..., tuple[int, str]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    left, right = weights(first), weights(second)
    return all(torch.equal(left[key], right[key]) for key in left | right)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--sam_variant", "none"], ["--compare", "--sam_variant none", "leave one of them out"]),
        (["--do_train", "False"], ["--compare needs a training"]),
        (["--do_eval", "False"], ["--compare needs a training"]),
        (["--fsdp", "full_shard"], ["--compare", "FSDP", "--sam_variant none"]),
    ],
)
def test_a_comparison_of_nothing_is_refused(sst2: list[Any], refuses: Any, extra: list[str], words: list[str]) -> None:
    if extra[0] == "--fsdp":
        args, training = parse([*map(str, sst2), "--compare"], {"sst2": {}})
        training.fsdp = ["full_shard"]
        with pytest.raises(UserError) as refused:
            comparison.check_compare(args, training)
        assert all(word in str(refused.value) for word in words)
        return
    refuses([*sst2, "--compare", *extra], *words)


def test_all_of_sams_settings_are_taken_out(sst2: list[Any]) -> None:
    given = ["--compare", "--sam_variant", "asam", "--rho", "0.5", "--sam_start", "0.5", "--ascent_fraction", "0.5"]
    _, training = parse([*map(str, sst2), *given, "--push_to_hub", "--report_to", "none"], {"sst2": {}})
    plain = comparison._without_sam(training, Path("out"))
    *without_rho, _, _ = map(str, sst2)
    _, alone = parse([*without_rho, "--sam_variant", "none", "--report_to", "none"], {"sst2": {}})
    left, right = plain.to_dict(), alone.to_dict()
    assert {k for k in left if left[k] != right[k] and k not in comparison._INCIDENTAL} <= {"report_to"}
    assert (training.sam_variant, training.rho, training.push_to_hub) == ("asam", 0.5, True)


@pytest.mark.slow
def test_both_runs_are_those_that_would_be_without_the_other(sst2: list[Any], run: Run, tmp_path: Path) -> None:
    out, plain, alone = tmp_path / "out", tmp_path / "plain", tmp_path / "alone"
    more = ["--config_overrides", '{"hidden_dropout_prob": 0.1}', "--rho", 0.1]
    assert run(*sst2, *more, "--compare")[0] == 0
    assert run(*sst2, "--config_overrides", more[1], "--sam_variant", "none", "--output_dir", plain)[0] == 0
    assert run(*sst2, *more, "--output_dir", alone)[0] == 0
    assert same(out / "_plain", plain)
    assert same(out, alone)
    assert not same(out, plain)
    found = results(out)
    assert found["plain_eval_loss"] == results(plain)["eval_loss"]
    assert found["plain_train_runtime"] > 0
    assert not {name for name in results(alone) if name.startswith("plain_")}

    # Going on: the plain run has ended and is not repeated; with other arguments it would be another one.
    before = (out / "_plain" / "model.safetensors").stat().st_mtime_ns
    (out / "model.safetensors").unlink()
    assert run(*sst2, *more, "--compare", "--resume_from_checkpoint", "True")[0] == 0
    assert (out / "_plain" / "model.safetensors").stat().st_mtime_ns == before
    assert results(out)["plain_eval_loss"] == found["plain_eval_loss"]
    assert same(out, alone)
    status, errors = run(*sst2, *more, "--compare", "--resume_from_checkpoint", "True", "--seed", 7)
    assert status == 2
    assert "--seed 42, and now it is 7" in errors


@resumes_bert_plainly
@pytest.mark.slow
def test_a_plain_run_that_was_stopped_goes_on(sst2: list[Any], run: Run, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    argv = [*sst2, "--num_train_epochs", 2]
    assert run(*argv, "--compare", "--output_dir", whole)[0] == 0
    shutil.copytree(whole / "_plain", out / "_plain")  # as it was when it was killed after its first checkpoint
    for path in (out / "_plain").iterdir():
        if path.is_file():
            path.unlink()
    shutil.rmtree(out / "_plain" / "checkpoint-6")
    state = json.loads((whole / "_plain" / "plain_run.json").read_text(encoding="utf-8"))
    (out / "_plain" / "plain_run.json").write_text(json.dumps({"arguments": state["arguments"]}), encoding="utf-8")
    status, errors = run(*argv, "--compare")
    assert status == 2
    assert f"{out / '_plain'} already holds a model" in errors
    assert run(*argv, "--compare", "--resume_from_checkpoint", "True")[0] == 0
    assert same(out / "_plain", whole / "_plain")
    assert same(out, whole)
    assert run(*argv, "--compare", "--overwrite_output_dir")[0] == 0
    assert same(out, whole)
