# SPDX-License-Identifier: Apache-2.0
"""How can a trainer train for a while and then be as it was, to the last bit?"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from hf_sam.step.replay import BufferState, RandomState, devices_of
from hf_sam.vectors.vectors import restore_, snapshot

CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
CANNOT_BE_COPIED = (
    "{name} cannot be copied ({error}), so it could not be left as it is. Do this with a trainer of its own, and train "
    "with another one."
)


class Attributes:
    """The attributes of objects, with what the containers among them hold.

    Args:
        owners: objects with a `__dict__`.
    """

    def __init__(self, owners: Iterable[object]) -> None:
        distinct = {id(owner): owner for owner in owners}.values()
        self._found = [(vars(owner), dict(vars(owner)), _contents(owner)) for owner in distinct]

    def restore(self) -> None:
        """Put the same objects back under the same names, and the same things into the same containers."""
        for now, attributes, contents in self._found:
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update(attributes)
            for name, content in contents.items():
                _refill(attributes[name], content)


class TrainerSnapshot:
    """What a trainer, its model, its optimizer and the random streams are like now.

    The optimizer, the scheduler and the gradient scaler work on copies of what they hold until `restore`. Weights that
    are frozen, which nobody trains, have no copy. What a data set or a callback remembers by itself is not known here.

    Args:
        trainer: a `transformers.Trainer` in one process.

    Raises:
        NotImplementedError: if the optimizer, the scheduler or the scaler cannot be copied.
    """

    def __init__(self, trainer: Any) -> None:
        accelerator = trainer.accelerator
        networks = list({id(x): x for x in vars(trainer).values() if isinstance(x, nn.Module)}.values())
        layers = list(_layers(trainer.optimizer))
        parts = [x for x in (*layers, trainer.lr_scheduler, accelerator.scaler) if x is not None]
        configs = [getattr(trainer.model, name, None) for name in ("config", "generation_config")]
        parameters = list(trainer.model.parameters())
        self._random = RandomState(devices_of([*parameters, torch.empty(0, device=trainer.args.device)]))
        self._attributes = Attributes(
            [
                *(trainer, accelerator, accelerator.gradient_state, *parts),
                *(config for config in configs if config is not None),
                *(module for network in networks for module in network.modules()),
            ]
        )
        self._buffers = [BufferState(network) for network in networks]
        self._marks: dict[int, tuple[Tensor, bool, Tensor | None]] = {}
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}
        held = [*vars(trainer).values(), *vars(accelerator).values(), *parameters, *_parameters(layers)]
        held += [v for x in layers if isinstance(x, AcceleratedOptimizer) for v in vars(x).values()]
        self._twins = _twins(parts, held)

    def begin(self, trainer: Any) -> None:
        """Let the optimizer, the scheduler and the scaler go on with their copies; take the gradients away."""
        for part, twin in self._twins:
            vars(part).update(twin)
        self.keep(trainer.model.parameters())

    def keep(self, parameters: Iterable[Tensor]) -> None:
        """Note the parameters that are not known yet, and take their gradients away."""
        for p in parameters:
            if id(p) in self._marks:
                continue
            if p.requires_grad:
                self._weights[id(p)] = p, snapshot([p])[0]
            self._marks[id(p)] = p, p.requires_grad, p.grad
            p.grad = None

    def restore(self) -> None:
        """Put everything back; may be called again."""
        self._attributes.restore()
        for buffers in self._buffers:
            buffers.restore()
        for p, requires_grad, grad in self._marks.values():
            p.requires_grad_(requires_grad)
            p.grad = grad
        for p, copied in self._weights.values():
            restore_([p], [copied])
        self._random.restore()


@contextmanager
def left_as_found(trainer: Any) -> Iterator[TrainerSnapshot]:
    """Leave a trainer as it is now, whatever happens to it inside, and whatever is raised.

    Yields:
        Where parameters can be noted that only become known inside.
    """
    undo = TrainerSnapshot(trainer)
    try:
        undo.begin(trainer)
        yield undo
    finally:
        try:
            undo.restore()
        except BaseException:  # Ctrl-C once more
            undo.restore()
            raise


def _contents(owner: object) -> dict[str, Any]:
    return {name: copy.copy(value) for name, value in vars(owner).items() if type(value) in CONTAINERS}


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, (list, deque)) else container.update(content)


def _layers(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and those it is wrapped around."""
    while optimizer is not None:
        yield optimizer
        optimizer = vars(optimizer).get("optimizer")


def _parameters(optimizers: Iterable[Any]) -> list[Tensor]:
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def _twins(parts: list[Any], held: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return each part with a copy of what it holds, in which they, and what is `held` by others, are themselves."""
    memo = {id(x): x for x in (*parts, *held)}
    twins = []
    for part in parts:
        try:
            twins.append((part, copy.deepcopy(vars(part), memo)))
        except (AttributeError, RuntimeError, TypeError, copy.Error) as error:
            name = type(part).__name__
            raise NotImplementedError(CANNOT_BE_COPIED.format(name=name, error=error)) from error
    return twins
