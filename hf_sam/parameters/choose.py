# SPDX-License-Identifier: Apache-2.0
"""Choices of the trained parameters that are perturbed."""

from __future__ import annotations

import difflib
import re
from typing import Any

from torch import nn

from hf_sam.parameters.freeze import frozen_except
from hf_sam.parameters.last_blocks import last_blocks
from hf_sam.parameters.unwrap import unwrapped

__all__ = ["checked_filter", "chosen", "frozen_except"]

ARGUMENT = "SAMConfig(sam_parameters=...)"
KEYWORDS = ("all", "norm", "no_norm", "last:k", "adapters")
WAYS = f"{', '.join(KEYWORDS)} or a regular expression for the parameters' names"
LAST = re.compile(r"last:([0-9]+)")

# Classes that normalise, by the end of their names: LayerNorm, LlamaRMSNorm, BatchNorm2d, MambaRMSNormGated, and the
# global response normalisation of ConvNeXt V2. Blocks that only have such a name own no parameters themselves.
NORMALISATION = re.compile(r"(Norm(Gated|[123][dD])?|GRN)$")

# What wrappers inside of a model put into the names of its parameters.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def checked_filter(which: Any, argument: str = ARGUMENT) -> str:
    """Return `which`, a choice of parameters (see `chosen`), if it can be one of some model.

    Args:
        which: what the user gave.
        argument: how the user typed it, for the message.

    Raises:
        TypeError: if it is not a string.
        ValueError: if it is empty, a number of blocks that cannot be, or no regular expression.
    """
    if not isinstance(which, str):
        raise TypeError(f"`{argument}` must be {WAYS}, got {which!r}.")
    if not which:
        raise ValueError(f"`{argument}` must be {WAYS}, got an empty string.")
    if which.startswith("last:"):
        blocks = LAST.fullmatch(which)
        if blocks is None or int(blocks.group(1)) < 1:
            raise ValueError(f"`{argument}` must be last:k with a whole number k >= 1, such as last:2, got {which!r}.")
    elif which not in KEYWORDS:
        try:
            re.compile(which)
        except re.error as error:
            hint = " What is * in a file pattern is .* here." if "*" in which else ""
            raise ValueError(f"`{argument}` must be {WAYS}, got {which!r} ({error}).{hint}") from None
    return which


def chosen(model: nn.Module, which: str, argument: str = ARGUMENT) -> dict[str, nn.Parameter]:
    """Return the trained parameters of `model` that `which` chooses.

    - "all".
    - "norm": those of normalisation layers (Mueller et al. 2023), by the class of the module that holds them, in any
      library's code; "no_norm": the others.
    - "last:k": the last k blocks of the main stack and what comes after them (pooler, final normalisation, head), so
      that the backward pass can stop there. Parameters that are also used before are left out: a head tied to the
      embedding, a bias of relative positions that all blocks share. In models of stages (Swin, ResNet) a stage is a
      block; in an encoder-decoder the decoder is the main stack, in a language model that sees or hears the language
      model is. What comes after goes by the convention of Hugging Face's models (all that is not in `base_model_prefix`
      is the head), then by the order of registration.
    - "adapters": those that PEFT has added (LoRA and others, prompts), without `modules_to_save`.
    - any other text: a regular expression that is searched in the names; a shared parameter has several.

    Args:
        model: bare, or as an engine has wrapped it. To be asked again when `requires_grad` of a parameter changes.
        which: see above.
        argument: how the user typed it, for messages.

    Returns:
        The parameters by name, as in `named_parameters()` of the bare model and in its order; at least one.

    Raises:
        TypeError: if `which` is not a string.
        ValueError: if it is no valid choice, or chooses no trained parameter of this model; with more blocks than there
            are; without a main stack, or with more than one.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        >>> list(chosen(model, "norm"))
        ['1.weight', '1.bias']
        >>> list(chosen(model, "^2"))
        ['2.weight', '2.bias']
    """
    checked_filter(which, argument)
    model = unwrapped(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"`{argument}` chooses from the trained parameters, and this model has none.")
    if which == "all":
        return trained
    if which in ("norm", "no_norm"):
        norm = _normalising(model)
        picked = {name: p for name, p in trained.items() if (id(p) in norm) == (which == "norm")}
    else:
        ids = _ids(model, which, argument)
        picked = {name: p for name, p in trained.items() if id(p) in ids}
    if not picked:
        raise ValueError(_nothing(model, which, argument, list(trained)))
    return picked


def _ids(model: nn.Module, which: str, argument: str) -> set[int]:
    """Return the `id` of each parameter, trained or not, that `which` chooses."""
    if which == "adapters":
        return _adapters(model)
    if blocks := LAST.fullmatch(which):
        return last_blocks(model, int(blocks.group(1)), argument.replace("...", repr(which)))
    named = model.named_parameters(remove_duplicate=False)
    return {id(p) for name, p in named if re.search(which, WRAPPERS.sub("", name))}


def _normalises(module: nn.Module) -> bool:
    return any(NORMALISATION.search(c.__name__) for c in type(module).__mro__)


def _normalising(model: nn.Module) -> set[int]:
    return {id(p) for m in model.modules() if _normalises(m) for p in m.parameters(recurse=False)}


def _adapters(model: nn.Module) -> set[int]:
    """Return what PEFT's tuner layers say is theirs, and prompt encoders."""
    ids: set[int] = set()
    for module in model.modules():
        parts = tuple(n for n in getattr(module, "adapter_layer_names", ()) if n != "modules_to_save")
        if any(c.__name__ == "PeftModel" for c in type(module).__mro__):  # others have a prompt encoder too
            parts += ("prompt_encoder",)
        if parts:
            named = module.named_parameters()
            ids.update(id(p) for name, p in named if name.startswith(tuple(f"{part}." for part in parts)))
    return ids


def _nothing(model: nn.Module, which: str, argument: str, trained: list[str]) -> str:
    """Return the message for a choice that is empty."""
    if which == "norm":
        reason = f"none of its {sum(map(_normalises, model.modules()))} normalisation layers has a trained parameter"
    elif which == "no_norm":
        reason = "nothing else than normalisation layers is trained"
    elif which == "adapters":
        reason = "it has no adapter of PEFT that is trained; wrap it with peft.get_peft_model first"
    elif which.startswith("last:"):
        reason = "nothing in these blocks or after them is trained"
    elif matching := _ids(model, which, argument):
        reason = f"the {len(matching)} parameters whose names match this regular expression are frozen"
    else:
        close = difflib.get_close_matches(which.lower(), KEYWORDS, n=1)
        reason = "no name matches this regular expression" + (f"; did you mean {close[0]!r}?" if close else "")
    examples = ", ".join(dict.fromkeys([trained[0], trained[len(trained) // 2], trained[-1]]))
    return (
        f"`{argument}` must choose a trained parameter of the model, and {which!r} chooses none: {reason}. "
        f"Trained are {len(trained)}, such as {examples}."
    )
