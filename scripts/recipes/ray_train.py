# SPDX-License-Identifier: Apache-2.0
"""Train with Ray Train: a SAMTrainer on every worker, as Ray runs any Trainer of transformers.

    pip install "ray[train]"
    python scripts/recipes/ray_train.py --workers 2               # on the CPUs of this machine
    python scripts/recipes/ray_train.py --workers 16 --use-gpu    # on a cluster, from its head node

Run with ray 2.60 on CPUs, one worker and two. Not yet run on GPUs or on several machines. Data and model are tiny and
made here: put your own into `make_trainer`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

# `python scripts/recipes/ray_train.py` puts its folder on the path, the import of hf_sam needs the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ray.train
import torch
from ray.train.huggingface.transformers import prepare_trainer
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,  # workers draw masks of their own
}  # fmt: skip


def make_trainer(settings: dict[str, Any]) -> SAMTrainer:
    """Return the trainer of one worker; all make the same one."""
    set_seed(0)
    model = BertForSequenceClassification(BertConfig(**SMALL))
    tokens = torch.randint(50, (64, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": int(row[0] > row[1])} for row in tokens]
    args = TrainingArguments(
        "outputs/ray_train",
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        use_cpu=not settings["use_gpu"],
        average_tokens_across_devices=False,  # BERT's loss is a mean already, and would be multiplied by the workers
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    return SAMTrainer(model, args, train_dataset=data, sam_config=SAMConfig(rho=0.05, sam_scope=settings["scope"]))


def train_on_worker(settings: dict[str, Any]) -> None:
    """Train on this worker; the first one gives Ray the model and the last log. Every worker runs this."""
    trainer = prepare_trainer(make_trainer(settings))
    trainer.train()
    last = {k: v for entry in trainer.state.log_history for k, v in entry.items()}
    metrics = {**last, "processes": trainer.args.world_size}
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_model(folder)
        first = ray.train.get_context().get_world_rank() == 0
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder) if first else None)


def run(settings: dict[str, Any]) -> ray.train.Result:
    """Train on all workers; return what the first one reported: `metrics`, and the model in `checkpoint`."""
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=settings["workers"], use_gpu=settings["use_gpu"]),
        torch_config=TorchConfig(backend="nccl" if settings["use_gpu"] else "gloo"),
        run_config=ray.train.RunConfig(storage_path=settings["storage"]),
    )
    return trainer.fit()


def main() -> None:
    """Read the command line, train, and print the last log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes, all machines together")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--scope", choices=["batch", "device", "micro_batch"], default="batch", help="sam_scope")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=8, help="of one worker")
    parser.add_argument("--storage", default=str(Path("outputs/ray").resolve()), help="folder that all machines share")
    result = run(vars(parser.parse_args()))
    print(result.metrics)
    print(result.checkpoint)


if __name__ == "__main__":
    main()
