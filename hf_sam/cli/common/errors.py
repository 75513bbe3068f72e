# SPDX-License-Identifier: Apache-2.0
"""How does a script tell its user that the input is wrong?"""

from __future__ import annotations

from huggingface_hub.errors import HfHubHTTPError

# What the HTTP library under huggingface_hub raises, whichever that is: refused requests, and no network at all.
HUB_ERROR: type[Exception] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException")
)


class UserError(Exception):
    """Something the user can put right. The script prints its text as one line on stderr and ends with status 2."""


def one_line(text: object, limit: int = 300) -> str:
    """Return `text` as a single line of at most `limit` characters (libraries raise whole paragraphs)."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
