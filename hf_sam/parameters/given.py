# SPDX-License-Identifier: Apache-2.0
"""The tensors in what a user gives for parameters or buffers: an iterable, a module, the groups of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

NO_TENSORS = "`{argument}` must be an iterable of tensors, such as {example}, got {what}."


def entries_of_group(group: Mapping[str, Any]) -> Iterable[Any]:
    """Return the entries of a parameter group as an optimizer takes it or keeps it, with their names if it has them."""
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    return zip(group["param_names"], params, strict=True) if group.get("param_names") else params


def entries_of(argument: str, given: Any, example: str) -> list[Any]:
    """Return the entries of an argument; those of a module are its parameters with their names."""
    if isinstance(given, nn.Module):
        return list(given.named_parameters())
    if isinstance(given, (Tensor, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(NO_TENSORS.format(argument=argument, example=example, what=f"a {type(given).__name__}"))
    return list(given)


def refuse_complex(name: str, tensor: Tensor) -> None:
    """Raise for a complex weight: norms and directions here are those of real numbers.

    Args:
        name: of the weight, as the user finds it.
        tensor: the weight.

    Raises:
        NotImplementedError: with the way out.
    """
    if tensor.is_complex() and tensor.requires_grad:
        raise NotImplementedError(
            f"Complex weights are not supported: hold {name} as two real numbers, and use torch.view_as_complex in the "
            "forward pass."
        )


def tensors_of(argument: str, given: Any, example: str) -> list[Tensor]:
    """Return the tensors in an argument, which holds nothing else."""
    entries = entries_of(argument, given, example)
    for entry in entries:
        if not isinstance(entry, Tensor):
            what = f"one with a {type(entry).__name__}"
            raise TypeError(NO_TENSORS.format(argument=argument, example=example, what=what))
    return entries
