# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a Hugging Face classifier, or train one from scratch, with Sharpness-Aware Minimization.

    hf-sam finetune                                                  # a small ViT on scikit-learn's digits
    hf-sam finetune recipe.yaml --rho 0.2
    hf-sam finetune --task text --train_file tickets.csv --model_name_or_path google-bert/bert-base-uncased
    accelerate launch -m hf_sam finetune --task sst2 --model_name_or_path google-bert/bert-base-uncased --rho 0.05

A recipe is a YAML file of arguments; the command line wins over it. `--sam_variant none` is the plain Trainer.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from hf_sam import SAMTrainer, WeightAveraging
from hf_sam.cli.common.after_training import Ending, keeping_outputs, show_after
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.averaging import check_averaging
from hf_sam.cli.common.before_training import show_before
from hf_sam.cli.common.checkpoints import (
    check_links,
    check_output_dir,
    check_same_model,
    clear_output_dir,
    find_checkpoint,
)
from hf_sam.cli.common.clock import TrainingClock, seconds_before, where_it_goes_on
from hf_sam.cli.common.comparison import check_compare, compare
from hf_sam.cli.common.errors import HUB_ERROR, UserError, one_line
from hf_sam.cli.common.fresh_dropout import FreshDropoutTrainer
from hf_sam.cli.common.full_disk import telling_of_full_disk
from hf_sam.cli.common.hub_card import CompleteCard, push
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.common.processes import check_same, prepared_together
from hf_sam.cli.common.programs import COMMAND, Names, run_program
from hf_sam.cli.common.progress import progress_bars
from hf_sam.cli.common.summary import finite, run_facts
from hf_sam.cli.common.suspects import find_suspects, keep_private
from hf_sam.cli.common.trackers import check_trackers
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.base import Task, hold_out


def main(argv: Sequence[str] | None = None, *, names: Names = COMMAND) -> int:
    """Run the program; wrong input is one line on stderr and status 2."""
    given = sys.argv[1:] if argv is None else argv

    def run() -> None:
        args, training = parse(given, {name: entry.defaults for name, entry in TASKS.items()}, names=names)
        check_trackers(training)
        with progress_bars(not training.disable_tqdm), telling_of_full_disk(Path(training.output_dir)):
            finetune(args, training)

    return run_program(names.of("finetune"), run)


def finetune(args: ScriptArguments, training: Any, *, quiet: bool = False) -> dict[str, Any]:
    """Train, evaluate and predict as the arguments say. Returns what is in all_results.json."""
    started = time.perf_counter()
    folder = Path(training.output_dir)
    task, checkpoint = _prepare(args, training, folder)
    if not quiet and _announce(args, training, task):
        return {}
    trainer = make_trainer(args, training, task)  # before the other one trains: what is refused, is refused now
    card = CompleteCard(trainer, args, task)
    comparison = compare(args, training, task, partial(finetune, quiet=True))
    started += comparison.seconds if comparison else 0.0
    if args.overwrite_output_dir and training.should_save and checkpoint is None:
        clear_output_dir(folder)
    keep_private(folder, training)
    ending = Ending(folder, folder / "merged" if _is_merged(args, task) else folder, comparison)

    results = _train(trainer, task, checkpoint) if training.do_train else {}
    if training.do_eval:
        results |= _evaluate(trainer, task, ending)
    if training.do_predict:
        results |= _predict(trainer, task, folder)
    ending.suspects = find_suspects(trainer, task) if args.suspects and training.do_train else None
    facts = run_facts(args, training, task, trainer.state.log_history) | ending.facts()
    facts["wall_time"] = time.perf_counter() - started
    results |= _save(trainer, "run", facts)
    card.results = results
    try:
        _publish(args, training, task, trainer)
    finally:
        if trainer.is_world_process_zero():
            ending.write()
    if trainer.is_world_process_zero() and not quiet:
        ending.pushed_to = trainer.hub_model_id if training.push_to_hub else None
        show_after(task, results, ending)
    return results


def _prepare(args: ScriptArguments, training: Any, folder: Path) -> tuple[Task, Path | None]:
    """Read the data and the model, and find the checkpoint to go on from. Nothing is written."""
    check_compare(args, training)
    check_averaging(args, training)
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
            task.facts.goes_on = where_it_goes_on(checkpoint)
    check_same(training, "the checkpoint to resume from", checkpoint)
    return task, checkpoint


def make_trainer(args: ScriptArguments, training: Any, task: Task) -> SAMTrainer:
    """Put the task into a trainer."""
    callbacks: list[TrainerCallback] = [TrainingClock()]
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    if args.average_weights is not None:
        callbacks.append(WeightAveraging(args.average_weights))
    evaluation = {name: split.data for name, split in task.evaluation.items()}
    kind: Any = task.trainer or (FreshDropoutTrainer if args.fresh_dropout else SAMTrainer)
    try:
        trainer: SAMTrainer = kind(
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


def _train(trainer: SAMTrainer, task: Task, checkpoint: Path | None) -> dict[str, Any]:
    before = time.process_time()
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    cpu_time = time.process_time() - before
    if trainer.is_fsdp_enabled:  # checkpoints may be sharded, but the result is an ordinary model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(_internal_call=True)  # else it pushes here, too, before the results are known
    trainer.save_state()
    metrics = {**output.metrics, "train_cpu_time": cpu_time, "train_samples": len(task.train)}
    return _save(trainer, "train", metrics | seconds_before(trainer))


def _evaluate(trainer: SAMTrainer, task: Task, ending: Ending) -> dict[str, Any]:
    samples = sum(len(split.data) for split in task.evaluation.values())
    with keeping_outputs(trainer, task, ending):
        metrics = trainer.evaluate()
    return _save(trainer, "eval", {**metrics, "eval_samples": samples})


def _predict(trainer: SAMTrainer, task: Task, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, split in task.test.items():
        output = trainer.predict(split.data, metric_key_prefix=f"test_{name}" if name else "test")
        results |= output.metrics
        results["predictions"] = [*results.get("predictions", []), str(folder / split.file_name)]
        if trainer.is_world_process_zero():
            task.write_predictions(split, output.predictions, folder)
    return _save(trainer, "predict", results)


def _save(trainer: SAMTrainer, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    metrics = finite(metrics)
    trainer.save_metrics(name, metrics)
    return metrics


def _publish(args: ScriptArguments, training: Any, task: Task, trainer: SAMTrainer) -> None:
    if training.push_to_hub:
        push(trainer)
    elif training.do_train:
        trainer.create_model_card()
    if _is_merged(args, task) and training.should_save and training.do_train:
        merged = Path(training.output_dir) / "merged"
        task.model.merge_and_unload().save_pretrained(merged)
        task.processing_class.save_pretrained(merged)


def _is_merged(args: ScriptArguments, task: Task) -> bool:
    return args.lora_merge and hasattr(task.model, "merge_and_unload")
