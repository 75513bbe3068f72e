# SPDX-License-Identifier: Apache-2.0
"""What other implementations mean by ASAM: the same step with T on other parameters. To compare with them alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hf_sam import ASAM


class ASAMByName(ASAM):
    """The authors' code: T = |w| + eta where the name contains "weight", whatever the shape."""

    def prepare(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        self.names = {id(p): name for name, p in named_parameters}

    def scales(self, param: Tensor) -> bool:
        return "weight" in self.names[id(param)]


class ASAMOnAll(ASAM):
    """`adaptive=True` of davda54/sam and pytorch-optimizer: T = |w| for every parameter."""

    def __init__(self) -> None:
        super().__init__(eta=0)

    def scales(self, param: Tensor) -> bool:
        return True
