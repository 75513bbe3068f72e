# SPDX-License-Identifier: Apache-2.0
"""Groups of parameters by patterns of module names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence


def groups_of(names: Iterable[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Return the parameters' names by the module that matches: "encoder.layer.*" makes a group of each layer.

    A pattern is a path, its parts separated by dots and matched as file names are; it may begin anywhere in a name.

    Raises:
        ValueError: if a pattern matches no name.

    Example:
        >>> groups_of(["bert.encoder.layer.0.bias", "bert.encoder.layer.1.bias", "head.bias"], ["layer.*", "head"])
        {'bert.encoder.layer.0': ['bert.encoder.layer.0.bias'], 'bert.encoder.layer.1': ['bert.encoder.layer.1.bias'], \
'head': ['head.bias']}
    """
    names = list(names)
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        before = len(found)
        for name in names:
            if (module := _module(name.split("."), pattern.split("."))) is not None:
                group = found.setdefault(module, [])
                if name not in group:
                    group.append(name)
        if len(found) == before:
            raise ValueError(
                f"`per_module(patterns=...)`: {pattern!r} matches no parameter. "
                f"Names look like {names[0]} and {names[-1]}."
            )
    return found


def _module(parts: list[str], pattern: list[str]) -> str | None:
    """Return the beginning of a name up to where the pattern ends."""
    for start in range(len(parts) - len(pattern) + 1):
        if all(map(fnmatch.fnmatchcase, parts[start : start + len(pattern)], pattern)):
            return ".".join(parts[: start + len(pattern)])
    return None
