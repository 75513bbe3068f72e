# SPDX-License-Identifier: Apache-2.0
"""The section of a model card that says how the model was trained."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_sam import _model_card
from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.trainer.card_repairs import keys_in_one_order, with_right_metadata, with_right_origin, with_tag
from hf_sam.trainer.run_totals import RunTotals
from hf_sam.variants import VARIANTS

SHOWN = ("rho", "sam_variant", "sam_variant_kwargs", "sam_scope")
"""Settings with a line of their own; the others have one where they are not at their default."""
HEADING = "### Sharpness-aware minimization"
NEXT_HEADING = "### Training hyperparameters"
END = "```"

_SECTION = """{heading}

{done} The model itself is an ordinary checkpoint.

- variant: {title}
- rho: {rho}
- scope: {scope}
{options}{measured}
```bibtex
{citation}
```
"""
_METHOD = "[Sharpness-Aware Minimization](https://arxiv.org/abs/2010.01412) (not Segment Anything)"
_DONE = {
    "two": "Trained with {method}: {steps} took the gradient at the worst nearby point of the loss, within radius rho "
    "of the weights, or as the variant has it.",
    "one": "Trained with {title}, a variant of {method} that takes one pass: {steps} took the gradient at weights "
    "moved by rho in a direction that was known before the pass.",
    "plain": "Trained with {title}, which stands in for {method} without a second pass, in {steps}.",
}


def sam_section(config: SAMConfig, totals: RunTotals) -> str:
    """Return the Markdown section for a run configured with `config`, in which SAM has done what `totals` says."""
    variant = VARIANTS[config.sam_variant]
    options = f"- options: {json.dumps(config.sam_variant_kwargs)}\n" if config.sam_variant_kwargs else ""
    for f in fields(SAMConfig):
        value = getattr(config, f.name)
        if f.name not in SHOWN and value != f.default:
            options += f"- {f.name}: {json.dumps(value)}\n"
    steps = "each step" if totals.share_perturbed == 1 else f"{_percent(totals.share_perturbed)} of the steps"
    return _SECTION.format(
        heading=HEADING,
        done=_DONE[variant.passes].format(method=_METHOD, title=variant.title, steps=steps),
        title=variant.title,
        rho=config.rho,
        scope=config.sam_scope,
        options=options,
        measured=_measured(totals),
        citation=variant.citation,
    )


def _measured(totals: RunTotals) -> str:
    lines = [
        f"steps with a perturbation: {totals.perturbed:,} of {totals.steps:,} ({_percent(totals.share_perturbed)})",
        f"radius: {totals.radius:.4g} on average, {totals.last_radius:.4g} at the end",
    ]
    if totals.mean_rise is not None:
        lines.append(f"rise of the loss at the perturbed weights: {totals.mean_rise:.4g} on average")
    lines.append(f"passes over the data in a step: {totals.passes_a_step:.3g} on average")
    return "".join(f"- {line}\n" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def with_section(card: str, config: SAMConfig, totals: RunTotals) -> str:
    """Return the model card's text with our section before the hyperparameters, or at the end if it has none."""
    return _model_card.with_section(card, sam_section(config, totals), end=END, before=NEXT_HEADING)


def signing_saved_card(trainer: Any, output_dir: str | None, save: Callable[[], None]) -> None:
    """Call `save`; sign the card that some models (sentence-transformers, PEFT) write beside their weights.

    Args:
        trainer: whose settings the card is to name.
        output_dir: where it saves to; None for the training arguments'.
        save: the Trainer's own saving.
    """
    path = Path(output_dir if output_dir is not None else trainer.args.output_dir) / "README.md"
    before = _version(path)
    save()
    totals = _done(trainer)
    if totals is not None and _version(path) not in (before, None):  # else it is the user's
        _sign(path, trainer, totals)


def write_card(trainer: Any, create: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write the Trainer's model card; where steps have perturbed, with the tag, what was done and the citation.

    Args:
        trainer: whose card it is.
        create: the Trainer's own `create_model_card`.
        args: for `create`.
        kwargs: likewise.
    """
    if trainer.sam_config.sam_variant == PLAIN:
        create(*args, **kwargs)
        return
    totals = _done(trainer)
    path = Path(trainer.args.output_dir) / "README.md"
    earlier = _earlier_section(path) if trainer._sam.averages.so_far().steps == 0 else None
    call = inspect.signature(create).bind(*args, **kwargs)
    if totals is not None or earlier is not None:
        call.arguments["tags"] = with_tag(call.arguments.get("tags"))
    with keys_in_one_order(trainer.state):
        create(*call.args, **call.kwargs)
    if not (trainer.is_world_process_zero() and path.is_file()):
        return
    path.write_text(with_right_origin(path.read_text(encoding="utf-8"), trainer.model), encoding="utf-8")
    if totals is not None:
        _sign(path, trainer, totals)
    elif earlier is not None:
        card = path.read_text(encoding="utf-8")
        path.write_text(_model_card.with_section(card, earlier, end=END, before=NEXT_HEADING), encoding="utf-8")


def _done(trainer: Any) -> RunTotals | None:
    """Return what SAM has done to the model that the trainer holds; None where no step has perturbed."""
    totals: RunTotals = trainer._sam.averages.so_far()
    return totals if trainer.sam_config.sam_variant != PLAIN and totals.perturbed and totals.radius > 0 else None


def _sign(path: Path, trainer: Any, totals: RunTotals) -> None:
    """Write the tag and the section into a card; take out what only this machine can read."""
    text = with_right_metadata(path.read_text(encoding="utf-8"))
    path.write_text(with_section(text, trainer.sam_config, totals), encoding="utf-8")


def _earlier_section(path: Path) -> str | None:
    """Return the section in a card of an earlier run, which the Trainer is about to write anew."""
    return _model_card.section_in(path.read_text(encoding="utf-8"), HEADING, end=END) if path.is_file() else None


def _version(path: Path) -> tuple[int, int] | None:
    """Return something else whenever the file was written; None if there is none."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
