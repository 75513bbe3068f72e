# SPDX-License-Identifier: Apache-2.0
"""Checks of what a user gives: numbers in their range, one of several choices, options that exist."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any


def check_number(
    where: str,
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return `value` as a float; raise unless it is a finite number within the bounds given.

    Args:
        where: what the option belongs to, for the message: `where(name=...)`.
        name: of the option.
        value: what the user gave.
        least: smallest allowed.
        above: must be larger than this.
        most: largest allowed.
        below: must be smaller than this.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is out of range.
    """
    bounds = [(least, ">="), (above, ">"), (most, "<="), (below, "<")]
    rules = " and ".join(f"{sign} {bound:g}" for bound, sign in bounds if bound is not None)
    rule = f" {rules}" if rules else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{where}({name}=...)` must be a number{rule}, got {value!r}.")
    fits = {
        ">=": lambda v, b: v >= b,
        ">": lambda v, b: v > b,
        "<=": lambda v, b: v <= b,
        "<": lambda v, b: v < b,
    }
    inside = all(fits[sign](value, bound) for bound, sign in bounds if bound is not None)
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond all floats
        number = math.inf
    if not math.isfinite(number) or not inside:
        raise ValueError(f"`{where}({name}=...)` must be a finite number{rule}, got {value!r}.")
    return number


def is_count(value: Any, least: float = 1, most: float = math.inf) -> bool:
    """Return whether `value` is a whole number from `least` to `most`; True and 2.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_count(
    where: str,
    name: str,
    value: Any,
    *,
    least: int = 1,
    most: float = math.inf,
    wrong_type: type[Exception] = ValueError,
) -> int:
    """Return `value`; raise unless it is a whole number from `least` to `most`.

    Args:
        where: what the option belongs to, for the message: `where(name=...)`.
        name: of the option.
        value: what the user gave.
        least: smallest allowed.
        most: largest allowed.
        wrong_type: what to raise if `value` is no whole number at all.

    Raises:
        ValueError: if it is out of range.
    """
    if is_count(value, least, most):
        return int(value)
    rule = f">= {least}" if most == math.inf else f"from {least} to {most}"
    error = ValueError if is_count(value, -math.inf) else wrong_type
    raise error(f"`{where}({name}=...)` must be a whole number {rule}, got {value!r}.")


def checked_choice(
    argument: str, value: Any, choices: Sequence[str], other_names: Mapping[str, str] | None = None
) -> str:
    """Return `value`; raise ValueError, naming `argument` and what is spelt alike, unless it is one of `choices`.

    Args:
        argument: what the user typed it for.
        value: what the user gave.
        choices: what it may be.
        other_names: choices by what they are called in other places.
    """
    if value not in choices:
        meant = (other_names or {}).get(value.lower(), value) if isinstance(value, str) else value
        raise ValueError(
            f"`{argument}` must be one of {', '.join(choices)}, got {value!r}.{did_you_mean(meant, choices)}"
        )
    return str(value)


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Return a question that names what of `choices` is spelt much like `value`; nothing where none is."""
    near = difflib.get_close_matches(str(value).strip().lower(), list(choices), n=1) if isinstance(value, str) else []
    return f" Did you mean {near[0]!r}?" if near else ""


def known_options(argument: str, name: str, options: Iterable[str], kwargs: Mapping[str, Any] | None) -> None:
    """Raise ValueError if `kwargs`, given for the choice `name` of `argument`, has a key that is not in `options`."""
    options = list(options)
    unknown = sorted(set(kwargs or {}) - set(options), key=str)
    if unknown:
        known = ", ".join(options) if options else "none"
        raise ValueError(
            f"`{argument}_kwargs` for {name!r} has no option {unknown[0]!r}; its options: {known}."
            + did_you_mean(unknown[0], options)
        )


def parsed_kwargs(argument: str, value: Any, example: str) -> dict[str, Any] | None:
    """Return the options as a new dict, or None where there are none.

    A user gives them as a mapping, or as the command line's JSON object.

    Raises:
        TypeError: if they are something else.
        ValueError: if the text is no JSON.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`SAMConfig({argument}=...)` must be a JSON object such as '{example}', got {value!r} ({error})."
            ) from None
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"`SAMConfig({argument}=...)` must be a mapping or None, got {value!r}.")
    return None if value is None else dict(value)  # a copy, so that a change of the user's mapping is seen
