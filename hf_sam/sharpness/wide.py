# SPDX-License-Identifier: Apache-2.0
"""How does a model that insists on float32 in places compute in float64?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CASTS = (Tensor.float, Tensor.to, Tensor.type)


class StayWide(TorchFunctionMode):
    """Leave tensors in float64 where code asks for float32.

    Models ask for it to be more exact than 16 bits: the softmax of eager attention, T5's norms, language models'
    losses. From float64 it is the other way round, and the Hessian is then symmetric to eight digits only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, with float64 in place of float32 if its input is in float64."""
        del types
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
            if func in CASTS and torch.float32 in args[1:]:
                args = (args[0], *(torch.float64 if a is torch.float32 else a for a in args[1:]))
        return func(*args, **kwargs)
