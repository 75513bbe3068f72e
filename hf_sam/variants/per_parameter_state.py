# SPDX-License-Identifier: Apache-2.0
"""What does a direction keep of each parameter from step to step, and how does it survive a resume?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_sam.vectors.shards import local_shard
from hf_sam.vectors.vectors import accumulation_dtype


class Memory:
    """One tensor per parameter: of what this process holds of it, in float32 (float64 for a parameter of float64).

    It is found by the parameter, so one without a gradient in some step does not shift the others. In a checkpoint it
    goes by the parameter's name, `mean.layer.weight`, or where there is none by the order in which those without a
    name were first asked for, `mean#0`: give names where parameters come and go. Shards go into the file as they are,
    so the processes that resume must be as many as those that saved.

    Args:
        of_what: what the tensors are; their keys in a checkpoint begin with it.
    """

    def __init__(self, of_what: str) -> None:
        self._of_what = of_what
        self._names: dict[int, str] = {}
        self._kept: dict[int, tuple[Tensor, str, Tensor]] = {}  # holds the parameter, so that its id stays its own
        self._loaded: dict[str, Tensor] = {}  # those whose parameter was not asked for yet

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Learn the parameters' names, for those that are not kept yet.

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
        """Return every tensor by its key, also those that were loaded and not asked for."""
        return {**self._loaded, **{key: tensor for _, key, tensor in self._kept.values()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget everything and take what `state_dict` returned. Each tensor goes to its parameter at first use.

        Raises:
            ValueError: if it is not the state of such a memory, and then nothing was changed.
        """
        for key, tensor in state.items():
            self._check(key, tensor)
        self._check_names(state)
        self._kept, self._loaded = {}, dict(state)

    def _first(self, p: Tensor) -> tuple[Tensor, str, Tensor]:
        part, name = local_shard(p), self._names.get(id(p))
        dtype = accumulation_dtype([part])
        unnamed = sum(key.startswith(f"{self._of_what}#") for _, key, _ in self._kept.values())
        key = f"{self._of_what}#{unnamed}" if name is None else f"{self._of_what}.{name}"
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
        if not re.fullmatch(rf"{self._of_what}(\..+|#(0|[1-9][0-9]*))", key):
            raise ValueError(f"the state's {key!r} is nothing that this direction keeps")
        if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"the state's {key!r} must be a tensor of float32 or float64, got {found}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the state's {key!r} has values that are not finite")

    def _check_names(self, state: dict[str, Any]) -> None:
        known = {f"{self._of_what}.{name}" for name in self._names.values()}
        unknown = [key for key in state if known and "#" not in key[: len(self._of_what) + 1] and key not in known]
        if unknown:
            raise ValueError(f"the state's {unknown[0]!r} belongs to no parameter of this model")

    def _check_kind(self, key: str) -> None:
        """Raise if the loaded tensors could not be found because only one side has names."""
        signs = {other[len(self._of_what)] for other in self._loaded}
        if signs and key[len(self._of_what)] not in signs:
            had, have = ("names", "none") if "." in signs else ("no names", "names")
            raise ValueError(
                f"The state was saved by a run whose parameters had {had}, now they have {have}: pass "
                "`model.named_parameters()` (or `model.parameters()`) as that run did."
            )
