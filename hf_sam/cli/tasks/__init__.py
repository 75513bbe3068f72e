# SPDX-License-Identifier: Apache-2.0
"""Which tasks are there? `TASKS[name]` builds one; adding a task is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_sam.cli.tasks import digits, glue, image, text
from hf_sam.cli.tasks.base import Task


@dataclass(frozen=True)
class Entry:
    """How to build a task, and which arguments it sets unless the user does."""

    build: Callable[..., Task]
    defaults: dict[str, Any]


TASKS: dict[str, Entry] = {
    "digits": Entry(digits.build, digits.DEFAULTS),
    "image": Entry(image.build, image.DEFAULTS),
    "text": Entry(text.build, text.DEFAULTS),
    **{name: Entry(glue.build, glue.defaults(name)) for name in glue.GLUE},
}
