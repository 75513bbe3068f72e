# SPDX-License-Identifier: Apache-2.0
"""What a variant keeps for each parameter from step to step, and saves for a resume."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_sam.vectors.shards import local_shard
from hf_sam.vectors.vectors import accumulation_dtype


class PerParameterState:
    """One tensor per parameter, of the shape of this process's part of it, in float32 (float64 for one of float64).

    A tensor is found by its parameter, so a parameter without a gradient in some step does not shift the others. Its
    key in a checkpoint is made of the parameter's name, `mean.layer.weight`. Parameters without a name are numbered in
    the order in which they were first asked for, `mean#0`: give names where parameters come and go. Shards are saved as
    they are, so a run has to be resumed on as many processes as it was saved on.

    Args:
        prefix: what the tensors are; their keys in a checkpoint begin with it.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: dict[int, str] = {}
        self._kept: dict[int, tuple[Tensor, str, Tensor]] = {}  # holds the parameter, so that its id stays its own
        self._loaded: dict[str, Tensor] = {}  # those whose parameter was not asked for yet

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Learn the names of the parameters that have no tensor yet.

        Raises:
            ValueError: if a state was loaded that has other names.
        """
        self._names = {}
        for name, p in named_parameters:
            self._names.setdefault(id(p), name)
        self._check_names(self._loaded)

    @torch.no_grad()
    def of(self, params: list[Tensor]) -> list[Tensor]:
        """Return the tensors that belong to `params`, to be changed in place; zeros for those that are new.

        Raises:
            ValueError: if a loaded tensor does not fit its parameter.
        """
        return [(self._kept.get(id(p)) or self._first(p))[2] for p in params]

    def state_dict(self) -> dict[str, Any]:
        """Return every tensor by its key, also those that were loaded and not asked for yet."""
        return {**self._loaded, **{key: tensor for _, key, tensor in self._kept.values()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace everything by what `state_dict` returned. Each tensor goes to its parameter at first use.

        Raises:
            ValueError: if it is not the state of such an object, and then nothing was changed.
        """
        for key, tensor in state.items():
            self._check(key, tensor)
        self._check_names(state)
        self._kept, self._loaded = {}, dict(state)

    def _first(self, p: Tensor) -> tuple[Tensor, str, Tensor]:
        part, name = local_shard(p), self._names.get(id(p))
        dtype = accumulation_dtype([part])
        unnamed = sum(key.startswith(f"{self._prefix}#") for _, key, _ in self._kept.values())
        key = f"{self._prefix}#{unnamed}" if name is None else f"{self._prefix}.{name}"
        kept = torch.zeros_like(part, dtype=dtype)  # laid out as the parameter is
        loaded = self._loaded.get(key)
        if loaded is None:
            self._check_kind(key)
        elif loaded.shape != part.shape or loaded.dtype != dtype:
            raise ValueError(
                f"The state's {key!r} has shape {tuple(loaded.shape)} and {loaded.dtype}, the parameter takes "
                f"{tuple(part.shape)} and {dtype} on this process. Resume with the model, the dtype and the number of "
                "processes that saved it, or start from the model alone."
            )
        else:
            kept.copy_(loaded)
            del self._loaded[key]
        self._kept[id(p)] = p, key, kept
        return self._kept[id(p)]

    def _check(self, key: str, tensor: Any) -> None:
        if not re.fullmatch(rf"{self._prefix}(\..+|#(0|[1-9][0-9]*))", key):
            raise ValueError(f"the state's {key!r} is nothing that this variant keeps")
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"the state's {key!r} must be a tensor of float32 or float64, got {found}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the state's {key!r} has values that are not finite")

    def _check_names(self, state: dict[str, Any]) -> None:
        known = {f"{self._prefix}.{name}" for name in self._names.values()}
        unknown = [key for key in state if known and "#" not in key[: len(self._prefix) + 1] and key not in known]
        if unknown:
            raise ValueError(f"the state's {unknown[0]!r} belongs to no parameter of this model")

    def _check_kind(self, key: str) -> None:
        """Raise if the loaded tensors could not be found because only the parameters or only the state has names."""
        signs = {other[len(self._prefix)] for other in self._loaded}
        if signs and key[len(self._prefix)] not in signs:
            had, have = ("names", "none") if "." in signs else ("no names", "names")
            raise ValueError(
                f"The state was saved by a run whose parameters had {had}, now they have {have}: pass "
                "`model.named_parameters()` (or `model.parameters()`) as that run did."
            )
