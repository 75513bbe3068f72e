# SPDX-License-Identifier: Apache-2.0
"""Does the Hub of the tests speak to huggingface_hub as the real one does?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.hub_server import TOKEN, serving
from tests.scripts.test_push import environment, python

CARD = "---\ntags:\n- mine\n---\n\n# Mine\n"
CLIENT = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
api, folder = HfApi(), Path(sys.argv[1])
assert api.whoami()["name"] == "me"
assert api.create_repo("mine", exist_ok=True).repo_id == api.create_repo("mine", exist_ok=True).repo_id == "me/mine"
api.upload_folder(repo_id="me/mine", folder_path=folder, commit_message="All of it", ignore_patterns=["_*"])
names = ["README.md", "model.safetensors", "inner/a.txt"]
for name in names:
    assert Path(hf_hub_download("me/mine", name)).read_bytes() == (folder / name).read_bytes(), name
assert sorted(api.list_repo_files("me/mine")) == sorted([".gitattributes", *names])
for repository, name, error in (("me/mine", "gone.txt", EntryNotFoundError), ("me/gone", "a", RepositoryNotFoundError)):
    try:
        hf_hub_download(repository, name)
    except error:
        pass
    else:
        raise SystemExit(f"{repository}/{name} is there")
(folder / "README.md").write_text("---\\ntags: mine\\nmetrics: []\\n---\\n")
try:
    api.upload_folder(repo_id="me/mine", folder_path=folder)
except ValueError as error:
    assert "Invalid metadata in README.md" in str(error), error
else:
    raise SystemExit("a wrong card was taken")
"""


@pytest.mark.slow
def test_files_go_in_and_come_out(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for name, content in (
        ("README.md", CARD),
        ("model.safetensors", "weights" * 1000),
        ("inner/a.txt", "text"),
        ("_b", ""),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    with serving() as hub:
        done = python("-c", CLIENT, folder, cwd=tmp_path, variables=environment(hub, tmp_path / "home"))
        assert done.returncode == 0, done.stderr
    assert not hub.unknown
    assert [message for _, message in hub.repositories["me/mine"].commits] == ["initial commit", "All of it"]
    assert hub.repositories["me/mine"].files["model.safetensors"].large
    assert hub.repositories["me/mine"].files["model.safetensors"].content == b"weights" * 1000


@pytest.mark.slow
def test_nobody_writes_without_the_token(tmp_path: Path) -> None:
    client = "from huggingface_hub import HfApi\nHfApi().create_repo('mine')"
    with serving() as hub:
        variables = {**environment(hub, tmp_path / "home"), "HF_TOKEN": TOKEN[:-1] + "1"}
        done = python("-c", client, cwd=tmp_path, variables=variables)
    assert done.returncode != 0
    assert "401" in done.stderr
    assert not hub.repositories
