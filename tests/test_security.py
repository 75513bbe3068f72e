# SPDX-License-Identifier: Apache-2.0
"""Does what somebody else wrote stay data? (For the scripts see `tests/scripts/test_security.py`.)"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_sam import SAMConfig, SAMTrainingArguments
from hf_sam.trainer.state_file import JSON_NAME, load_state, save_state
from tests.looped import looped
from tests.promises.runs import differences, fingerprint, trainer_for
from tests.test_layout import ROOT, sources

# ----------------------------------------------------------------------------------------------------------------------
# The source
# ----------------------------------------------------------------------------------------------------------------------
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "read_pickle", "full_load"}


def dangers(source: str) -> Iterator[str]:
    """Yield what could run what a file says."""
    tree = ast.parse(source)
    safe_loaders = {"SafeLoader", "CSafeLoader"}
    safe_loaders |= {
        c.name for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and "SafeLoader" in map(last_name, c.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLING)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module or ""] if (node.module or "").split(".")[0] in UNPICKLING else []
        elif isinstance(node, ast.Call):
            yield from dangerous_call(node, safe_loaders)


def dangerous_call(node: ast.Call, safe_loaders: set[str]) -> Iterator[str]:
    text, name = ast.unparse(node), last_name(node.func)
    is_method = isinstance(node.func, ast.Attribute)
    if name in RUNNING and not (name in ("compile", "eval") and is_method):  # re.compile, model.eval
        yield text
    if any(k.arg in ("shell", "allow_pickle") and ast.unparse(k.value) != "False" for k in node.keywords):
        yield text
    if ast.unparse(node.func) == "torch.load" and "weights_only=True" not in text:
        yield text
    if ast.unparse(node.func) in ("yaml.load", "yaml.load_all"):
        given = [*node.args[1:], *(k.value for k in node.keywords if k.arg == "Loader")]
        if not given or last_name(given[0]) not in safe_loaders:
            yield text
    if any(k.arg == "trust_remote_code" and ast.unparse(k.value) == "True" for k in node.keywords):
        yield text


def last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


@looped
@pytest.mark.parametrize("path", sources("hf_sam") + sources("scripts"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_of_ours_runs_what_a_file_says(path: Path) -> None:
    named_by_us = {"extras.py": ["importlib.import_module(module)"]}  # by the package's own constants, no file's
    assert list(dangers(path.read_text(encoding="utf-8"))) == named_by_us.get(path.name, [])


@looped
@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "def f(): import dill", "import cloudpickle.x", "eval(x)",
        "exec('a')", "__import__(x)", "importlib.import_module(x)", "os.system(x)", "torch.load(x)",
        "torch.load(x, weights_only=False)", "yaml.load(x)", "yaml.load(x, yaml.Loader)",
        "yaml.load(x, Loader=yaml.FullLoader)", "np.load(x, allow_pickle=True)", "run(x, shell=True)", "compile(x)",
        "pd.read_pickle(x)", "f(x, trust_remote_code=True)", "class L(yaml.Loader): pass\nyaml.load(x, L)",
    ],
)  # fmt: skip
def test_the_check_of_the_source_finds(line: str) -> None:
    assert list(dangers(line))


@pytest.mark.parametrize(
    "line",
    ["re.compile(x)", "torch.load(x, weights_only=True)", "yaml.safe_load(x)", "import json",
     "class L(yaml.SafeLoader): pass\nyaml.load(x, L)", "f(x, trust_remote_code=args.trust_remote_code)"],
)  # fmt: skip
def test_the_check_of_the_source_lets_pass(line: str) -> None:
    assert not list(dangers(line))


# ----------------------------------------------------------------------------------------------------------------------
# A checkpoint
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_direction_in_a_checkpoint_is_a_name_to_compare_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf_sam_evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\nEvil = int\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole = trainer_for("bert", tmp_path / "out", sam=SAMConfig(rho=0.2), **settings)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    config = SAMConfig(rho=0.2)
    config.sam_variant = "hf_sam_evil.Evil"
    config.sam_variant_kwargs = {"!!python/object/apply:os.system": ["touch exploded"], "__class__": "hf_sam_evil:Evil"}
    again = trainer_for("bert", tmp_path / "again", sam=SAMConfig(rho=0.2), **settings)
    save_state(checkpoint, config, {"steps": 1})
    with pytest.raises(ValueError, match=r"holds the state of 'hf_sam_evil\.Evil'"):
        again.train(resume_from_checkpoint=str(checkpoint))
    save_state(checkpoint, config, {})
    again.train(resume_from_checkpoint=str(checkpoint))
    expected, found = fingerprint(whole), fingerprint(again)
    assert not [name for name in differences(expected, found) if name != "logs"]
    assert "hf_sam_evil" not in sys.modules
    assert not (tmp_path / "exploded").exists()


def test_training_arguments_are_not_in_our_state(tmp_path: Path) -> None:
    args = SAMTrainingArguments(str(tmp_path / "out"), use_cpu=True, hub_token="hf_secret")
    save_state(tmp_path, args, {})
    assert load_state(tmp_path) is not None
    assert "hf_secret" not in (tmp_path / JSON_NAME).read_text()
