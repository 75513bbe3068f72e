# SPDX-License-Identifier: Apache-2.0
"""Is a tracker whose package is missing told in one line, before anything is done?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.integrations import integration_utils

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.trackers import _CHECKS, check_trackers
from tests.looped import looped


def wanting(*names: str) -> Any:
    return SimpleNamespace(report_to=list(names))


def checks() -> dict[str, str]:
    return {name: f"is_{_CHECKS.get(name, name)}_available" for name in integration_utils.INTEGRATION_TO_CALLBACK}


@looped
@pytest.mark.parametrize("name", list(integration_utils.INTEGRATION_TO_CALLBACK))
def test_every_tracker_of_transformers_has_its_check(name: str) -> None:
    assert hasattr(integration_utils, checks()[name])


@pytest.mark.parametrize(
    ("name", "install"),
    [("trackio", "pip install trackio"), ("comet_ml", "pip install comet-ml"), ("flyte", "pip install flytekit")],
)
def test_a_missing_package_is_named(name: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_utils, checks()[name], lambda: False)
    with pytest.raises(UserError, match=rf"--report_to {name} needs a package: {install}"):
        check_trackers(wanting(name))
    monkeypatch.setattr(integration_utils, checks()[name], lambda: True)
    check_trackers(wanting(name))


def test_an_unknown_tracker_is_refused_and_none_is_fine() -> None:
    with pytest.raises(UserError, match=r"--report_to wanb is unknown\. Known: .*wandb.*none"):
        check_trackers(wanting("wanb"))
    check_trackers(wanting())


def test_the_script_ends_in_one_line_and_writes_nothing(
    refuses: Any, sst2: list[object], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    refuses([*sst2, "--report_to", "trackio"], "--report_to trackio", "pip install trackio")
    assert not (tmp_path / "out").exists()
