# SPDX-License-Identifier: Apache-2.0
"""Show warnings with the package's name where the program has not said how it wants to see them."""

from __future__ import annotations

import logging
import sys


class LastResort(logging.Handler):
    """Writes warnings to stderr as Python does where nothing is configured, with the name of their logger in front.

    As soon as the program gives the root logger a handler, that one shows them, and this one is silent.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless another handler does."""
        if logging.getLogger().handlers:
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
        except ValueError:  # stderr is closed, at the end of a process
            self.handleError(record)


def name_the_package(package: str) -> None:
    """Let the warnings of a package's loggers begin with its name."""
    logger = logging.getLogger(package)
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        handler = LastResort(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"{package}: %(levelname)s: %(message)s"))
        logger.addHandler(handler)
