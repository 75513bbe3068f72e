# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a Hugging Face classifier, or train one from scratch, with Sharpness-Aware Minimization.

    python scripts/finetune.py                                       # a small ViT on scikit-learn's digits
    python scripts/finetune.py scripts/recipes/digits_noise_sam.yaml --rho 0.2
    accelerate launch scripts/finetune.py --task sst2 --model_name_or_path google-bert/bert-base-uncased --rho 0.05

A recipe is a YAML file of arguments; the command line wins over it. `--sam_variant none` is the plain Trainer.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, set_seed

from hf_sam import SAMTrainer
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.before_training import show_before
from hf_sam.cli.common.checkpoints import (
    check_links,
    check_output_dir,
    check_same_model,
    clear_output_dir,
    find_checkpoint,
)
from hf_sam.cli.common.errors import HUB_ERROR, UserError, one_line
from hf_sam.cli.common.fresh_dropout import FreshDropoutTrainer
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.common.per_class import show_per_class
from hf_sam.cli.common.processes import check_same, prepared_together
from hf_sam.cli.common.summary import finite, run_facts, show
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.base import Task, hold_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; wrong input is one line on stderr and status 2."""
    try:
        script_args, training_args = parse(
            sys.argv[1:] if argv is None else argv, {name: entry.defaults for name, entry in TASKS.items()}
        )
        finetune(script_args, training_args)
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) <= 0:  # once, not once per process
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def finetune(args: ScriptArguments, training: Any) -> dict[str, Any]:
    """Train, evaluate and predict as the arguments say. Returns what is in all_results.json."""
    started = time.perf_counter()
    folder = Path(training.output_dir)
    if training.resume_from_checkpoint and args.overwrite_output_dir:
        raise UserError("--resume_from_checkpoint keeps what --overwrite_output_dir would remove: give one of them.")
    with prepared_together(training):
        check_links(folder)
        checkpoint = find_checkpoint(training.resume_from_checkpoint, folder)
        if training.do_train:
            check_output_dir(folder, resume=checkpoint is not None, overwrite=args.overwrite_output_dir)
        if args.torch_threads is not None:
            torch.set_num_threads(args.torch_threads)
        set_seed(training.seed)
        task = TASKS[args.task].build(args, training)
        hold_out(task, args.hold_out)
        if checkpoint is not None:
            check_same_model(checkpoint, task.model)
    check_same(training, "the checkpoint to resume from", checkpoint)
    if _announce(args, training, task):
        return {}
    trainer = make_trainer(args, training, task)
    if args.overwrite_output_dir and training.should_save and checkpoint is None:
        clear_output_dir(folder)

    results = _train(trainer, task, checkpoint) if training.do_train else {}
    if training.do_eval:
        results |= _evaluate(trainer, task)
    if training.do_predict:
        results |= _predict(trainer, task, folder)
    facts = run_facts(args, training, task, trainer.state.log_history)
    facts["wall_time"] = time.perf_counter() - started
    results |= _save(trainer, "run", facts)
    _publish(args, training, task, trainer)
    _show(args, task, trainer, results)
    return results


def make_trainer(args: ScriptArguments, training: Any, task: Task) -> SAMTrainer:
    """Put the task into a trainer."""
    callbacks = []
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    evaluation = {name: split.data for name, split in task.evaluation.items()}
    kind = FreshDropoutTrainer if args.fresh_dropout else SAMTrainer
    try:
        trainer = kind(
            model=task.model,
            args=training,
            train_dataset=task.train,
            eval_dataset=evaluation.get("", evaluation or None),
            data_collator=task.data_collator,
            processing_class=task.processing_class,
            compute_loss_func=task.compute_loss,
            compute_metrics=task.compute_metrics,
            callbacks=callbacks,
        )
    except (OSError, HUB_ERROR) as error:
        where = "--push_to_hub cannot prepare the repository: " if training.push_to_hub else ""
        raise UserError(where + one_line(error)) from error
    except (ValueError, NotImplementedError, ImportError) as error:
        raise UserError(one_line(error)) from error
    if trainer.is_fsdp_enabled and _is_merged(args, task):
        raise UserError("--lora_merge needs whole weights, and FSDP spreads them: add --lora_merge False.")
    return trainer


def _announce(args: ScriptArguments, training: Any, task: Task) -> bool:
    """Say what was understood and will be done. Returns whether that is all, as it is for --dry_run."""
    if (training.do_train or args.dry_run) and training.process_index == 0:
        show_before(args, training, task)
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:  # the trainer refuses what it would refuse, and leaves nothing
            training.output_dir, training.push_to_hub = folder, False
            make_trainer(args, training, task)
    return args.dry_run


def _show(args: ScriptArguments, task: Task, trainer: SAMTrainer, results: dict[str, Any]) -> None:
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        show(task, results, folder / "merged" if _is_merged(args, task) else folder)
        show_per_class(task.compute_metrics)


def _train(trainer: SAMTrainer, task: Task, checkpoint: Path | None) -> dict[str, Any]:
    before = time.process_time()
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    cpu_time = time.process_time() - before
    if trainer.is_fsdp_enabled:  # checkpoints may be sharded, but the result is an ordinary model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.save_state()
    return _save(trainer, "train", {**output.metrics, "train_cpu_time": cpu_time, "train_samples": len(task.train)})


def _evaluate(trainer: SAMTrainer, task: Task) -> dict[str, Any]:
    samples = sum(len(split.data) for split in task.evaluation.values())
    return _save(trainer, "eval", {**trainer.evaluate(), "eval_samples": samples})


def _predict(trainer: SAMTrainer, task: Task, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, split in task.test.items():
        output = trainer.predict(split.data, metric_key_prefix=f"test_{name}" if name else "test")
        results |= output.metrics
        if trainer.is_world_process_zero():
            task.write_predictions(split, output.predictions, folder)
    return _save(trainer, "predict", results)


def _save(trainer: SAMTrainer, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    metrics = finite(metrics)
    trainer.save_metrics(name, metrics)
    return metrics


def _publish(args: ScriptArguments, training: Any, task: Task, trainer: SAMTrainer) -> None:
    card = dict(task.card)
    local = args.model_name_or_path is not None and Path(args.model_name_or_path).is_dir()
    if args.model_name_or_path and not local:
        card["finetuned_from"] = args.model_name_or_path
    if training.push_to_hub:
        trainer.push_to_hub(**card)
    elif training.do_train:
        trainer.create_model_card(**card)
        if local and training.should_save:
            _name_local_model(Path(training.output_dir) / "README.md", Path(str(args.model_name_or_path)).name)
    if _is_merged(args, task) and training.should_save and training.do_train:
        merged = Path(training.output_dir) / "merged"
        task.model.merge_and_unload().save_pretrained(merged)
        task.processing_class.save_pretrained(merged)


def _name_local_model(card: Path, name: str) -> None:
    # A card can only name a model of the Hub, and calls every other one trained from scratch.
    text = card.read_text(encoding="utf-8")
    card.write_text(
        text.replace("was trained from scratch", f"is fine-tuned from a local checkpoint ({name})"), "utf-8"
    )


def _is_merged(args: ScriptArguments, task: Task) -> bool:
    return args.lora_merge and hasattr(task.model, "merge_and_unload")
