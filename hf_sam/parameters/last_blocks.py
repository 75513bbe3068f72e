# SPDX-License-Identifier: Apache-2.0
"""The last blocks of a model, and what runs after them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

# Modules next to the stack that do not run in the order in which they are registered.
RUNS_BEFORE = re.compile(r"(?<!un)embed|enc_to_dec|multi_modal_projector")
RUNS_AFTER = ("final_layer_norm", "pooler")

WAY_OUT = r"Choose by a regular expression instead, such as 'layers\.(10|11)\.|pooler|classifier'."


class Stack(NamedTuple):
    """Blocks that run one after the other.

    Attributes:
        path: name of the list that holds them.
        blocks: in the order in which they run.
    """

    path: str
    blocks: list[nn.Module]


def last_blocks(model: nn.Module, k: int, argument: str) -> set[int]:
    """Return the parameters that belong only to the last k blocks and to what runs after them, by `id`.

    Args:
        model: not wrapped, or wrapped inside only.
        k: number of blocks, >= 1.
        argument: what the user typed, for messages.

    Raises:
        ValueError: if there are fewer blocks, no stack of blocks, or more than one; if the blocks share their weights.
    """
    path, blocks = main_stack(model, argument)
    config = getattr(model, "config", None)
    tied = hasattr(config, "num_hidden_groups")  # as ALBERT's has, which runs one block many times
    if k > len(blocks) and not tied:
        raise ValueError(f"`{argument}` asks for the last {k} blocks, and {path} has {len(blocks)}.")
    last = [f"{path}.{i}." for i in range(len(blocks) - k, len(blocks))]
    reached = (*last, *_after(model, path))
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    ids = {p for p, known_as in names.items() if all(f"{name}.".startswith(reached) for name in known_as)}
    if tied or any(not any(id(p) in ids for p in block.parameters()) for block in blocks[-k:]):
        raise ValueError(f"`{argument}` cannot be, as the blocks of {path} share their weights. {WAY_OUT}")
    return ids


def main_stack(model: nn.Module, argument: str) -> Stack:
    """Return the stack of blocks that the model mainly consists of; raise ValueError, naming `argument`, if unclear.

    Lists of convolutions in front of a transformer (wav2vec 2.0) do not count. Of several stacks the decoder's or the
    language model's is the main one; other models with several (CLIP) have none.
    """
    found = list(_stacks(model, ""))
    if not found:
        raise ValueError(f"`{argument}` needs an nn.ModuleList of blocks, and this model has none. {WAY_OUT}")
    stacks = [s for s in found if not _convolves(s)] or found
    if len(stacks) > 1:
        ends = [s for s in stacks if any(n.endswith("decoder") or n == "language_model" for n in s.path.split("."))]
        stacks = ends if len(ends) == 1 else stacks
    in_turn = _in_turn_with(model, stacks[0])
    if len(stacks) > 1 or in_turn:
        names = ", ".join(f"{path} ({len(blocks)})" for path, blocks in found + in_turn)
        raise ValueError(f"`{argument}` needs one stack of blocks, and this model has {names}, side by side. {WAY_OUT}")
    return stacks[0]


def _stacks(module: nn.Module, prefix: str) -> Iterator[Stack]:
    """Yield each stack that is not part of a block of another one."""
    for name, child in module.named_children():
        if _is_stack(child):
            yield Stack(f"{prefix}{name}", _entries(child))
        else:
            yield from _stacks(child, f"{prefix}{name}.")


def _entries(module: nn.Module) -> list[nn.Module]:
    return [m for m in module._modules.values() if m is not None]  # children() leaves out repetitions


def _is_stack(module: nn.Module) -> bool:
    """Return whether `module` is a list of blocks, which have parts themselves, unlike the layers of a small head."""
    blocks = _entries(module)
    alike = type(module) is nn.Sequential and len(blocks) > 1 and len({type(b) for b in blocks}) == 1
    if not (isinstance(module, nn.ModuleList) or alike) or not blocks:
        return False
    return all(any(True for _ in b.children()) and any(True for _ in b.parameters()) for b in blocks)


def _convolves(stack: Stack) -> bool:
    """Return whether the blocks consist of convolutions, without any other matrices than theirs."""
    modules = [m for block in stack.blocks for m in block.modules()]
    convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
    return any(isinstance(m, convolutions) for m in modules) and not any(isinstance(m, nn.Linear) for m in modules)


def _in_turn_with(model: nn.Module, stack: Stack) -> list[Stack]:
    """Return the lists next to the stack with as many entries, which surely run in turn with its blocks."""
    prefix, dot, own = stack.path.rpartition(".")
    lists = [(n, m) for n, m in model.get_submodule(prefix).named_children() if isinstance(m, nn.ModuleList)]
    in_turn = [
        Stack(f"{prefix}{dot}{n}", _entries(m)) for n, m in lists if n != own and any(True for _ in m.parameters())
    ]
    return [s for s in in_turn if len(s.blocks) == len(stack.blocks)]


def _after(model: nn.Module, path: str) -> Iterator[str]:
    """Yield the beginnings of the names of what runs after the stack at `path`.

    Where a model has a `base_model_prefix`, Hugging Face's convention is that everything outside the backbone is the
    head. In other modules it is what is registered after the stack, up to the first table of embeddings. This errs on
    the cheap side: nothing is included that runs before the blocks, but the last normalisation is missed in a few
    models that register it early or call it an embedding (T5Gemma, Wav2Vec2-Conformer, LFM2).
    """
    holder, prefix = model, ""
    for part in path.split("."):
        children = dict(holder.named_children())
        if getattr(type(holder), "base_model_prefix", None) == part:
            yield from (f"{prefix}{n}." for n in children if n != part)
            yield from (f"{prefix}{n}." for n in holder._parameters)
        else:
            later = list(children)[list(children).index(part) + 1 :]
            tables = (i for i, n in enumerate(later) if _holds_embedding(children[n]))
            yield from (f"{prefix}{n}." for n in later[: next(tables, None)] if not RUNS_BEFORE.search(n))
            yield from (f"{prefix}{n}." for n in RUNS_AFTER if n in children)
        holder, prefix = children[part], f"{prefix}{part}."


def _holds_embedding(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Embedding) for m in module.modules())
