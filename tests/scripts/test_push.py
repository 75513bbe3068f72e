# SPDX-License-Identifier: Apache-2.0
"""Does a push arrive, whole and nothing else, and does what arrived load from there?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.hub_cards import card_errors
from tests.scripts.hub_server import TOKEN, Hub, serving
from tests.warm import ROOT

MARK = "unmistakable"  # a word of the training texts
LOAD = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
classify = pipeline("text-classification", model=sys.argv[1], device="cpu", top_k=None)
assert "hf_sam" not in sys.modules
print(json.dumps([model.config.id2label, [classify(text) for text in ("the good film", "a bad plot")]]))
"""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Return the variables of a machine that knows this Hub alone, and has loaded nothing from it yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return {**kept, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}


def python(*arguments: Any, cwd: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture
def argv(bert: Path, tmp_path: Path, write_csv: Any) -> list[Any]:
    rows = [
        [f"the {'good' if row % 2 else 'bad'} film {MARK} {row}", ("praise", "blame")[row % 2]] for row in range(20)
    ]
    train = write_csv("tickets.csv", ["text", "label"], rows)
    script = ROOT / "scripts" / "finetune.py"
    return [
        script, "--task", "text", "--train_file", train, "--model_name_or_path", bert, "--output_dir", tmp_path / "out",
        "--num_train_epochs", 2, "--use_cpu", "--disable_tqdm", "True", "--push_to_hub",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_push_arrives_and_loads_from_there(argv: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving() as hub:
        more = ["--hub_model_id", "tickets", "--compare", "--rho", "0.05"]
        pushed = python(*argv, *more, cwd=tmp_path, variables=environment(hub, tmp_path / "writer"))
        assert pushed.returncode == 0, pushed.stderr
        loaded = python("-c", LOAD, "me/tickets", cwd=tmp_path, variables=environment(hub, tmp_path / "reader"))
        assert loaded.returncode == 0, loaded.stderr
        here = python("-c", LOAD, out, cwd=tmp_path, variables=environment(hub, tmp_path / "reader"))
    assert json.loads(loaded.stdout) == json.loads(here.stdout)
    assert json.loads(loaded.stdout)[0] == {"0": "blame", "1": "praise"}

    assert list(hub.repositories) == ["me/tickets"]
    files = hub.repositories["me/tickets"].files
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "all_results.json"} <= files.keys()
    assert all(file.content == (out / name).read_bytes() for name, file in files.items() if name != ".gitattributes")
    assert hub.repositories["me/tickets"].commits[-1][1] == "End of training"
    assert "On the Hub: " in pushed.stdout
    assert "me/tickets" in pushed.stdout
    assert not hub.unknown

    # The list of suspects holds training texts, and the plain model is another one: both stay here.
    assert (out / "suspects.csv").is_file()
    assert (out / "_plain" / "model.safetensors").is_file()
    assert not [name for name in files if name.startswith(("_", "checkpoint-", "suspects"))]
    assert not [name for name, file in files.items() if MARK.encode() in file.content and name != "tokenizer.json"]

    card = files["README.md"].content.decode()
    assert card_errors(card) == []
    assert str(tmp_path) not in card
    assert all(words in card for words in ("| 0 | blame |", "tickets.csv", "Sharpness-aware", "local checkpoint"))


@pytest.mark.slow
def test_a_refused_push_is_one_line(argv: list[Any], tmp_path: Path) -> None:
    with serving() as hub:
        variables = {**environment(hub, tmp_path / "writer"), "HF_TOKEN": "hf_" + "1" * 34}
        refused = python(*argv, cwd=tmp_path, variables=variables)
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "--push_to_hub cannot prepare the repository" in line
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()
