# SPDX-License-Identifier: Apache-2.0
"""Progress bars: ours and the libraries', shown or hidden together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging

T = TypeVar("T")


def wanted_by_default() -> bool:
    """Say whether someone watches: a bar in a file is thousands of lines."""
    return sys.stderr.isatty()


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide all bars meanwhile, but for the Trainer's, which has an argument; of several processes one shows."""
    shown = shown and int(os.environ.get("LOCAL_RANK", "0")) <= 0
    before = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    try:
        _set(shown, shown)
        yield
    finally:
        _set(*before)


def _set(of_datasets: bool, of_transformers: bool) -> None:
    (enable_progress_bars if of_datasets else disable_progress_bars)()
    (logging.enable_progress_bar if of_transformers else logging.disable_progress_bar)()


def track(todo: Iterable[T], text: str, *, total: int | None = None) -> Iterable[T]:
    """Return what is to be done one by one, with a bar if bars are shown."""
    return tqdm(todo, desc=text, total=total)


def parts_of_work(training: Any) -> Progress:
    """Return a display of several bars, of which some cannot know how far they are."""
    columns = BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    text = TextColumn("{task.description}")
    return Progress(text, *columns, console=Console(stderr=True), transient=True, disable=training.disable_tqdm)
