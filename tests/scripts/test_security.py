# SPDX-License-Identifier: Apache-2.0
"""Do the scripts run no code of others unless told to, and write nowhere but in the output folder?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils as dynamic

Run = Callable[..., tuple[int, str]]
Refuses = Callable[..., None]


# ----------------------------------------------------------------------------------------------------------------------
# A model that brings its own code
# ----------------------------------------------------------------------------------------------------------------------
CODE = """
from transformers import BertConfig, BertForSequenceClassification
open({marker!r}, "w").close()
class EvilConfig(BertConfig):
    model_type = "evil"
class Evil(BertForSequenceClassification):
    config_class = EvilConfig
"""


@pytest.fixture
def evil(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose code leaves a file called exploded."""
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "evil"
    shutil.copytree(bert, folder)
    (folder / "code_evil.py").write_text(CODE.format(marker=str(tmp_path / "exploded")))
    names = {"AutoConfig": "code_evil.EvilConfig", "AutoModelForSequenceClassification": "code_evil.Evil"}
    edit_config(folder, model_type="evil", architectures=["Evil"], auto_map=names)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.slow
def test_code_that_comes_with_a_model_is_refused_unless_the_user_trusts_it(
    evil: Path,
    sst2: list[Any],
    run: Run,
    refuses: Refuses,
    tmp_path: Path,
) -> None:
    argv = [*sst2, "--model_name_or_path", evil, "--tokenizer_name", sst2[3]]
    refuses(argv, "--model_name_or_path", "cannot be loaded", "custom code")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out").exists()
    assert run(*argv, "--trust_remote_code")[0] == 0
    assert (tmp_path / "exploded").exists()


@pytest.mark.slow
def test_code_beside_a_known_model_is_left_alone(evil: Path, sst2: list[Any], run: Run, tmp_path: Path) -> None:
    edit_config(evil, model_type="bert")
    assert run(*sst2, "--model_name_or_path", evil)[0] == 0
    assert not (tmp_path / "exploded").exists()


@pytest.mark.slow
def test_code_in_a_checkpoint_is_not_run_to_resume_from_it(
    evil: Path,
    sst2: list[Any],
    run: Run,
    refuses: Refuses,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(*sst2)[0] == 0
    checkpoint = tmp_path / "out" / "checkpoint-3"
    for name in ("config.json", "code_evil.py"):
        shutil.copy(evil / name, checkpoint / name)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # as a user would who is asked too often
    refuses([*sst2, "--resume_from_checkpoint", checkpoint], "checkpoint of another model", "evil")
    assert not (tmp_path / "exploded").exists()


def test_a_data_set_is_not_a_program(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "pictures.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    status, errors = run("--task", "image", "--dataset_name", tmp_path / "pictures", "--output_dir", tmp_path / "out")
    assert status == 2
    assert "cannot be read" in errors
    assert not (tmp_path / "exploded").exists()


# ----------------------------------------------------------------------------------------------------------------------
# The output folder
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may change."""
    folder = tmp_path / "elsewhere"
    (folder / "inner").mkdir(parents=True)
    for path in ("config.json", "model.safetensors", "trainer_state.json", "inner/weights.bin"):
        (folder / path).write_text("precious")
    yield folder
    assert {p.name for p in folder.rglob("*.*")} == {
        "config.json", "model.safetensors", "trainer_state.json", "weights.bin"
    }  # fmt: skip
    assert all(p.read_text() == "precious" for p in folder.rglob("*.*"))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("config.json", "config.json"),
        ("README.md", "config.json"),
        ("all_results.json", "nowhere.json"),
        ("checkpoint-3", ""),
        ("merged", "inner"),
        ("checkpoint-1/config.json", "config.json"),
    ],
)
@pytest.mark.parametrize("extra", [[], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "True"]], ids=str)
def test_a_link_out_of_the_output_folder_is_refused(
    link: str,
    target: str,
    extra: list[str],
    elsewhere: Path,
    sst2: list[Any],
    refuses: Refuses,
    tmp_path: Path,
) -> None:
    path = tmp_path / "out" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere / target)
    refuses([*sst2, *extra], "--output_dir", link, "leads out of it")
    assert path.is_symlink()


@pytest.mark.slow
def test_a_link_within_the_output_folder_is_removed_and_not_followed(
    elsewhere: Path,
    sst2: list[Any],
    run: Run,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(elsewhere, folder / "kept")
    (folder / "checkpoint-9").symlink_to(folder / "kept")
    assert run(*sst2, "--overwrite_output_dir")[0] == 0
    assert not (folder / "checkpoint-9").is_symlink()
    assert (folder / "kept" / "inner" / "weights.bin").read_text() == "precious"


@pytest.mark.slow
def test_an_output_folder_that_is_itself_a_link_is_where_the_user_wants_it(
    sst2: list[Any],
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run(*sst2)[0] == 0
    assert (tmp_path / "disk" / "model.safetensors").is_file()


@pytest.mark.slow
def test_names_with_dots_write_nothing_outside_of_the_output_folder(
    sst2: list[Any],
    run: Run,
    refuses: Refuses,
    tmp_path: Path,
    reviews: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {p for p in tmp_path.rglob("*") if (tmp_path / "out") not in (p, *p.parents)}
    refuses([*sst2, "--task", "../../sst2"], "--task", "../../sst2")
    refuses(["--task", "digits", "--sam_variant", "../../x"], "sam_variant", "../../x")
    extra = ["--run_name", "../../../named", "--report_to", "tensorboard", "--do_predict", "--test_file", reviews]
    assert run(*sst2, *extra)[0] == 0
    assert (tmp_path / "out" / "SST-2.tsv").is_file()
    assert {p for p in tmp_path.rglob("*") if (tmp_path / "out") not in (p, *p.parents)} == before
    assert not list(tmp_path.parent.glob("named*"))
