# SPDX-License-Identifier: Apache-2.0
"""How does a benchmark that works for hours say how far it is?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from transformers.utils import logging

from hf_sam.cli.common.errors import UserError


def print_lines(work: Callable[[], Iterator[str]]) -> int:
    """Print a line for each part of the work; wrong input is one line on stderr and status 2."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # not a report of each head that an encoder is loaded without
    try:
        for line in work():
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        logging.set_verbosity(verbosity)
    return 0
