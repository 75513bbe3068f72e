# SPDX-License-Identifier: Apache-2.0
"""The ways in which tags mark entities, with B-, I- and their kin before a type, or mark none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_sam.cli.common.errors import one_line

_PREFIXED = re.compile(r"([BIESLUM])[-_](.+)", re.DOTALL)
_LONE = frozenset("BIESLU")  # of a single type, which then has no name
# What seqeval calls them: a last word is E, a single one S, one in the middle I.
_AS_SEQEVAL = {"L": "E", "U": "S", "M": "I"}
_NAMES = {
    "BIOES": "BIOES: entities begin with B-, end with E-, and S- is one of a single word",
    "BILOU": "BILOU: entities begin with B-, end with L-, and U- is one of a single word",
    "IOB1": "IOB1: entities begin with I-, with B- only right after one of their type",
    "BIO": "BIO: entities begin with B-",
    "IO": "IO: words of an entity have I-, and two entities side by side are one",
}


@dataclass
class Scheme:
    """Whether the tags mark entities, and what there is to say about how."""

    entities: bool
    rule: str
    warnings: list[str] = field(default_factory=list)


def find_scheme(sentences: Sequence[Sequence[str]]) -> Scheme:
    """Return how these tags, of the training data, mark entities.

    Example:
        >>> find_scheme([["B-PER", "I-PER", "O"]]).rule
        'BIO: entities begin with B-'
        >>> find_scheme([["DET", "NOUN"]]).entities
        False
    """
    counts = Counter(tag for tags in sentences for tag in tags)
    inside = [tag for tag in counts if tag != "O"]
    marked = [tag for tag in inside if _parts(tag, counts) is not None]
    if not marked:
        warning = ["every tag is a number: --tag_names O B-PER ... names them"] if _are_numbers(inside) else []
        return Scheme(False, "a tag for each word, none of which marks entities", warning)
    if others := [tag for tag in inside if tag not in marked]:
        shown = one_line(", ".join(f"{tag!r} ({counts[tag]:,})" for tag in others), 100)
        rule = "a tag for each word: some look like those of entities (B-, I-), and some do not"
        return Scheme(False, rule, [f"{shown} are no tags of entities, so none are scored: correct them if they are"])
    prefixes = {parts[0] for tag in marked if (parts := _parts(tag, counts))}
    name = _name(prefixes, sentences)
    begun = _begun_inside(sentences) if name == "BIO" else 0
    warnings = [f"{begun:,} entities begin with I-, and count as entities all the same"] if begun else []
    return Scheme(True, _NAMES[name], warnings)


def as_entities(tags: Sequence[str]) -> list[str]:
    """Return tags as seqeval reads them, for whichever scheme."""
    found = []
    for tag in tags:
        prefix, _, kind = tag.partition(tag[1] if len(tag) > 1 else "-")
        prefix = _AS_SEQEVAL.get(prefix, prefix)
        found.append(tag if tag == "O" else f"{prefix}-{kind or 'entity'}")
    return found


def inner_tag(tag: str, names: Sequence[str]) -> str:
    """Return the tag of a word's later pieces: inside of an entity that the word begins, if there is such a tag."""
    inside = f"I{tag[1:]}"
    return inside if tag[:1] == "B" and inside in names else tag


def _parts(tag: str, counts: Counter[str]) -> tuple[str, str] | None:
    found = _PREFIXED.fullmatch(tag)
    if found is not None:
        return found[1], found[2]
    lone = set(counts) <= _LONE | {"O"} and "O" in counts and set(counts) & {"B", "I"}
    return (tag, "") if lone else None


def _name(prefixes: set[str], sentences: Sequence[Sequence[str]]) -> str:
    if prefixes & {"L", "U"}:
        return "BILOU"
    if prefixes & {"E", "S", "M"}:
        return "BIOES"
    if prefixes == {"I"}:
        return "IO"
    return "IOB1" if _only_between(sentences) else "BIO"


def _only_between(sentences: Sequence[Sequence[str]]) -> bool:
    """Say whether every B- follows a word of an entity of its type, as it would in IOB1 alone."""
    pairs = [(one, two) for tags in sentences for one, two in zip(("O", *tags), tags, strict=False)]
    return all(one[1:] == two[1:] and one != "O" for one, two in pairs if two.startswith("B"))


def _begun_inside(sentences: Sequence[Sequence[str]]) -> int:
    pairs = [(one, two) for tags in sentences for one, two in zip(("O", *tags), tags, strict=False)]
    return sum(two.startswith("I") and (one == "O" or one[1:] != two[1:]) for one, two in pairs)


def _are_numbers(tags: Sequence[str]) -> bool:
    return bool(tags) and all(tag.isdecimal() for tag in tags)
