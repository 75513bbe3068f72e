# SPDX-License-Identifier: Apache-2.0
"""A model measured through copies of its tensors, so that nothing of it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import set_seed

from hf_sam.sharpness.attributes import Attributes
from hf_sam.sharpness.examples import mapped
from hf_sam.sharpness.frozen import FrozenWeights
from hf_sam.step.replay import RandomState, devices_of

CASTS = (Tensor.float, Tensor.to, Tensor.type)
PLAIN = (Tensor, nn.Parameter)
LARGE = 2**20
"""Elements of a buffer without fractions that is not copied."""


class BorrowedModel:
    """A model whose chosen parameters and buffers are replaced by copies while something is measured.

    Frozen weights stay where they are (see `hf_sam.sharpness.frozen`). The model's own tensors are never written to, so
    neither an error nor a killed process leaves a trace in them. Inside `with_copies` the model is in evaluation mode,
    keeps no cache of keys and values, computes in `dtype` even under autocast, and has attention that can be
    differentiated twice.

    Args:
        model: without a wrapper (see `hf_sam.sharpness.measurable`).
        chosen: the parameters to differentiate by, by name; the copies of these require a gradient.
        dtype: of the copies; None leaves each tensor the dtype it has.
        seed: of the random streams at each start of `with_copies`, for models that draw numbers in evaluation mode.
        others: other objects whose attributes are what they were afterwards: the loss's, a trainer.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: dict[str, nn.Parameter],
        dtype: torch.dtype | None,
        seed: int,
        others: Iterable[Any] = (),
    ) -> None:
        self.model, self.seed, self.others = model, seed, [each for each in others if each is not None]
        self.names = list(chosen)
        wanted = {id(p) for p in chosen.values()}
        self._copies: dict[int, Tensor] = {}
        self._frozen: list[Tensor] = []
        for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
            if (copy := _copied(tensor, id(tensor) in wanted, dtype)) is not None:
                self._copies[id(tensor)] = copy
            stays = tensor if copy is None else copy
            if id(tensor) not in wanted and (copy is None or isinstance(copy, nn.Parameter)) and type(stays) in PLAIN:
                self._frozen.append(stays)
        lost = [name for name, p in chosen.items() if id(p) not in self._copies]
        if lost:
            raise TypeError(f"{lost[0]} is stored in a form without gradients ({type(chosen[lost[0]]).__name__}).")
        self.parameters = [self._copies[id(p)] for p in chosen.values()]
        self._dtype = dtype
        self._found = self._states()

    @contextmanager
    def with_copies(self) -> Iterator[nn.Module]:
        """Yield the model with the copies in it; put everything back at the end.

        Raises:
            RuntimeError: if the model was trained on since it was copied.
        """
        if self._states() != self._found:
            raise RuntimeError(
                "The model's weights have changed since this analyzer was made, which copied them: make a new one."
            )
        with ExitStack() as undo:
            undo.callback(RandomState(devices_of(self.model.parameters())).restore)
            undo.callback(Attributes(self.others).restore)
            undo.callback(self._renew, {key: copy._version for key, copy in self._copies.items()})
            undo.enter_context(_as_found(self.model))
            undo.enter_context(_without_cache(self.model))
            self._put_in()
            self.model.train(False)
            set_seed(self.seed)
            undo.enter_context(sdpa_kernel(SDPBackend.MATH))
            undo.enter_context(torch.enable_grad())
            if self._dtype is not None:
                _forget_mixed_precision(self.model)
                for kind in {device.type for device in devices_of(self.parameters)}:
                    undo.enter_context(torch.autocast(kind, enabled=False))
            if self._frozen:
                undo.enter_context(FrozenWeights(self._frozen, self._dtype).used())
            if self._dtype == torch.float64:
                undo.enter_context(StayFloat64())
            yield self.model

    def cast(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with its floating-point tensors, such as images, in the dtype of the copies."""
        cast: dict[str, Any] = mapped(batch, lambda t: t.to(self._dtype or t.dtype) if t.is_floating_point() else t)
        return cast

    def _states(self) -> list[tuple[int, int, int]]:
        """Return which tensors the model has that are copied, where, and how often they were written to."""
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return [
            (key, tensor.data_ptr(), tensor._version)
            for key, tensor in tensors.items()
            if key in self._copies and not tensor.is_inference()
        ]

    def _renew(self, versions: Mapping[int, int]) -> None:
        """Give buffers that a forward pass has written into their values back, for the next measurement."""
        for module in self.model.modules():
            for _, buffer in _own(module, "buffers"):
                copy = self._copies.get(id(buffer))
                if copy is not None and copy._version != versions[id(buffer)]:
                    self._copies[id(buffer)] = buffer.detach().to(copy.dtype, copy=True)

    def _put_in(self) -> None:
        for module in self.model.modules():
            for name, tensor in (*_own(module, "parameters"), *_own(module, "buffers")):
                if id(tensor) in self._copies:
                    setattr(module, name, self._copies[id(tensor)])


def _copied(tensor: Tensor, differentiated: bool, dtype: torch.dtype | None) -> Tensor | None:
    """Return the copy that replaces `tensor`; None where the tensor can stay, as a frozen weight."""
    if not isinstance(tensor, nn.Parameter):
        if type(tensor) is not Tensor or _holds_weights(tensor):
            return None
        floating = tensor.is_floating_point() and dtype is not None
        return tensor.detach().to(dtype if floating else tensor.dtype, copy=True)
    if type(tensor) is not nn.Parameter or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if differentiated:
        return nn.Parameter(tensor.detach().to(dtype or tensor.dtype, copy=True))
    return nn.Parameter(tensor.detach(), requires_grad=False) if tensor.requires_grad else None


def _holds_weights(buffer: Tensor) -> bool:
    """Return whether a buffer is so large that it must be quantised weights rather than a count or a mask."""
    return not buffer.is_floating_point() and buffer.numel() >= LARGE


def _own(module: nn.Module, kind: str) -> list[tuple[str, Tensor]]:
    """Return the parameters or buffers of this module itself, not of its children, under every name."""
    return list(getattr(module, f"named_{kind}")(recurse=False, remove_duplicate=False))


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Put every parameter, buffer and other attribute of every module back to what it was.

    Tensors go through `setattr`, which recurrent layers need: they keep a second list of their weights.
    """
    attributes = Attributes(model.modules())
    found = [(m, [*_own(m, "parameters"), *_own(m, "buffers")], list(m._buffers.items())) for m in model.modules()]
    try:
        yield
    finally:
        attributes.restore()
        for module, tensors, buffers in found:
            for name, tensor in tensors:
                setattr(module, name, tensor)
            module._buffers.update(buffers)


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Switch off the cache of keys and values in every config; put back all that a forward pass wrote into one."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values()
    found = [(vars(config), dict(vars(config))) for config in configs if hasattr(config, "__dict__")]
    for now, _ in found:
        if now.get("use_cache") is True:
            now["use_cache"] = False
    try:
        yield
    finally:
        for now, before in found:
            now.clear()
            now.update(before)


def _forget_mixed_precision(model: nn.Module) -> None:
    """Take off the autocast that `Accelerator.prepare` has put around the forward pass."""
    original = vars(model).get("_original_forward")
    if original is not None:
        model.forward = original


class StayFloat64(TorchFunctionMode):
    """Mode in which a tensor in float64 stays in float64 where the model's code asks for float32.

    Models cast to float32 to be more exact than 16 bits: in the softmax of eager attention, in T5's norms, in language
    models' losses. From float64 the cast loses digits, and the Hessian is symmetric to eight digits only.
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
