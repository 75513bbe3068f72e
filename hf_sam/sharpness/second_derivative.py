# SPDX-License-Identifier: Apache-2.0
"""What is said where a loss can be differentiated only once?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ONCE = (
    "The loss has no second derivative, which eigenvalues, trace and density need ({}). Use attn_implementation='eager' "
    "and plain PyTorch in place of what can be differentiated once (fused kernels, custom functions, cdist), or measure "
    "what needs gradients only: sam_sharpness, worst_case, average_case."
)


@contextmanager
def second_derivative() -> Iterator[None]:
    """Say in one line what to do where something of the loss can be differentiated only once.

    Raises:
        NotImplementedError: in place of what autograd says.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        if not any(word in said for word in ("derivative", "differentiat", "not implemented")):
            raise
        raise NotImplementedError(ONCE.format(said)) from error
