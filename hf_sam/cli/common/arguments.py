# SPDX-License-Identifier: Apache-2.0
"""The arguments of the programs, besides those of `SAMTrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.target import KINDS

ONLY_FOR = {
    **dict.fromkeys(("label_all_pieces", "tag_names"), "tokens"),
    **dict.fromkeys(("messages_column", "prompt_column", "completion_column"), "sft"),
    **dict.fromkeys(("completion_only_loss", "chat_template", "packing"), "sft"),
}
"""Arguments that one task alone knows."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ScriptArguments:
    """Data, model, adapters and the run. One field is one `--argument` and one recipe key."""

    task: str = _option(
        "digits",
        "text, tokens, sft, image, digits, or a GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli.",
    )

    # --- model
    model_name_or_path: str | None = _option(None, "Pretrained model: a Hub name or a folder.")
    model_type: str | None = _option(None, "Train from scratch: the architecture, such as bert or vit.")
    config_name: str | None = _option(None, "Train from scratch: a Hub name or folder to take the config from.")
    config_overrides: str | None = _option(
        None, "JSON object of config values to change, such as '{\"hidden_size\": 64}'."
    )
    tokenizer_name: str | None = _option(None, "Tokenizer, if it is not the model's own.")
    image_processor_name: str | None = _option(None, "Image processor, if it is not the model's own.")
    image_size: int | None = _option(
        None, "Train from scratch: pixels a side, for models whose config does not say (resnet); 224 when not given."
    )
    model_revision: str = _option("main", "Branch, tag or commit of the model on the Hub.")
    trust_remote_code: bool = _option(False, "Run model code that comes with the checkpoint.")
    dtype: str = _option(
        "float32",
        "How weights are stored: float32, bfloat16, float16. SAM's step is too small for 16 bits: rather use --bf16.",
    )
    ignore_mismatched_sizes: bool = _option(False, "Replace a head whose size does not fit the labels by a new one.")

    # --- data
    dataset_name: str | None = _option(None, "--task text and image: a dataset on the Hub.")
    dataset_config_name: str | None = _option(None, "Configuration of the dataset on the Hub.")
    train_split: str = _option("train", "--dataset_name: the split to train on.")
    validation_split: str = _option("validation", "--dataset_name: the split to evaluate on.")
    test_split: str = _option("test", "--dataset_name: the split for --do_predict.")
    train_file: str | None = _option(
        None, "Local training data: csv, tsv, json (lines), parquet or txt (--task tokens: CoNLL); .gz too."
    )
    validation_file: str | None = _option(None, "Local evaluation data (mnli: the matched set).")
    validation_mismatched_file: str | None = _option(None, "mnli: the mismatched evaluation set.")
    test_file: str | None = _option(None, "Local data for --do_predict; labels may be missing.")
    test_mismatched_file: str | None = _option(None, "mnli: the mismatched test set.")
    train_dir: str | None = _option(None, "--task text and image: a folder with one folder of files per class.")
    validation_dir: str | None = _option(None, "The same for evaluation.")
    test_dir: str | None = _option(None, "The same for --do_predict; may hold the files themselves.")
    image_column: str | None = _option(None, "Column of the images; found by itself when it is called image or img.")
    text_column: str | None = _option(
        None, "--task text: column of the texts; found by its name, or the only one left."
    )
    text_pair_column: str | None = _option(
        None, "--task text: column of second texts, for pairs such as two questions."
    )
    drop_empty_texts: bool = _option(False, "--task text: leave out rows without text, which are refused otherwise.")
    label_column: str | None = _option(None, "Column of the labels; found by its name, or the only one left.")
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "Multi-label data with a column of 0 and 1 for each label: those columns."}
    )
    problem: str | None = _option(
        None, "What the labels are, if not what their rule says: classification, multilabel or regression."
    )
    label_separator: str = _option("|", "What stands between several labels in one cell, as in billing|refund.")
    class_weights: str | None = _option(None, "balanced: every class weighs the same in the loss, however rare it is.")
    encoding: str | None = _option(None, "Encoding of text files, such as cp1252; found (UTF-8, UTF-16, cp1252).")
    separator: str | None = _option(None, "What separates the columns of a csv file (tab for a tab); found.")
    validation_share: float = _option(
        0.15, "Share of the training data kept for evaluation when there is no evaluation set."
    )
    hold_out: float | None = _option(
        None,
        "Evaluate on this share of the training data, which is then not trained on, instead of on the evaluation set.",
    )
    max_train_samples: int | None = _option(None, "Use only so many training examples (a random choice, seeded).")
    max_eval_samples: int | None = _option(None, "Use only the first so many evaluation examples.")
    max_predict_samples: int | None = _option(None, "Use only the first so many examples in --do_predict.")
    max_length: int = _option(128, "Cut texts to so many tokens.")
    label_noise: float = _option(
        0.0, "Give this share of the training labels a random other class. Evaluation labels are never touched."
    )

    # --- words with tags, and language models
    label_all_pieces: bool = _option(
        False, "--task tokens: train on all pieces of a word, not on its first alone. Words are scored by their first."
    )
    tag_names: list[str] | None = field(
        default=None, metadata={"help": "--task tokens: names of the tags in their order, if the data have numbers."}
    )
    messages_column: str | None = _option(None, "--task sft: column of chats, lists of messages; found by its name.")
    prompt_column: str | None = _option(None, "--task sft: column of prompts (or questions); found by its name.")
    completion_column: str | None = _option(None, "--task sft: column of completions (or answers); found by its name.")
    completion_only_loss: bool = _option(
        True, "--task sft: learn completions and the assistant's messages alone, not what they answer."
    )
    chat_template: str | None = _option(
        None, "--task sft: chat template, if the tokenizer has none or another is wanted: a file, or plain."
    )
    packing: bool = _option(False, "--task sft: put several training rows into one of up to --max_length tokens.")

    # --- adapters
    lora_r: int | None = _option(
        None, "Train LoRA adapters of this rank instead of all weights; 0 for all weights of a large model, too."
    )
    lora_alpha: int | None = _option(None, "LoRA scale; 2 x lora_r when not given.")
    lora_dropout: float = _option(0.0, "LoRA dropout.")
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers that get adapters; all linear layers when not given."}
    )
    lora_merge: bool = _option(True, "Also save the model with its adapters merged in, in <output_dir>/merged.")

    # --- run
    dry_run: bool = _option(False, "Say what was understood of the data and what would be done, and stop.")
    compare: bool = _option(
        False, "Train without SAM first, with the same seed and data, and show both results side by side."
    )
    suspects: bool = _option(
        True, "Write suspects.csv: training labels that the trained model contradicts, the surest contradictions first."
    )
    early_stopping_patience: int | None = _option(
        None, "Stop after so many evaluations without a better result, and keep the best model."
    )
    early_stopping_threshold: float = _option(0.0, "What counts as better.")
    average_weights: float | None = _option(
        None, "Keep the mean of the weights over the rest of the run after this share of it, such as 0.5, not the last."
    )
    overwrite_output_dir: bool = _option(
        False, "Train into an output_dir that holds a model: its checkpoints and results are removed first."
    )
    fresh_dropout: bool = _option(
        False, "Draw new dropout masks in SAM's second pass, which otherwise has those of the first (an ablation)."
    )
    torch_threads: int | None = _option(None, "CPU threads of torch. Small models are fastest with 1.")

    def __post_init__(self) -> None:
        _check_range(self, "label_noise", lambda v: 0 <= v < 1, "in [0, 1)")
        _check_range(self, "validation_share", lambda v: 0 < v < 1, "in (0, 1)")
        _check_range(self, "hold_out", lambda v: v is None or 0 < v < 1, "in (0, 1)")
        _check_range(self, "average_weights", lambda v: v is None or 0 <= v < 1, "in [0, 1)")
        _check_range(self, "lora_dropout", lambda v: 0 <= v < 1, "in [0, 1)")
        for name in (
            "max_train_samples",
            "max_eval_samples",
            "max_predict_samples",
            "max_length",
            "image_size",
        ):
            _check_range(self, name, lambda v: v is None or v >= 1, "at least 1")
        _check_range(self, "lora_r", lambda v: v is None or v >= 0, "at least 0")
        for name in ("early_stopping_patience", "torch_threads"):
            _check_range(self, name, lambda v: v is None or v >= 1, "at least 1")
        for name, known in (("problem", KINDS), ("class_weights", ("balanced",))):
            if getattr(self, name) not in (None, *known):
                raise UserError(f"--{name} must be {' or '.join(known)}, got {getattr(self, name)!r}.")
        if not self.label_separator:
            raise UserError("--label_separator must be a text, got ''.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"--dtype must be float32, bfloat16 or float16, got {self.dtype!r}.")
        if not self.lora_r:
            self._refuse_without("lora_r", ("lora_alpha", "lora_target_modules"))
        for name, task in ONLY_FOR.items():
            if self.task != task and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(
                    f"--{name} is for --task {task} and does nothing with --task {self.task}: leave it out."
                )
        self._refuse_two_sources()
        self._refuse_of_other_tasks()

    def _refuse_two_sources(self) -> None:
        if self.label_column and self.label_columns:
            raise UserError("--label_column and --label_columns both name the labels: give one.")
        if self.model_name_or_path and (self.model_type or self.config_name):
            raise UserError(
                "--model_name_or_path loads a pretrained model, --model_type and --config_name build a new one: "
                "give one of them."
            )

    def _refuse_of_other_tasks(self) -> None:
        for f in fields(self):
            task = ONLY_FOR.get(f.name, self.task)
            if task != self.task and getattr(self, f.name) != f.default:
                raise UserError(f"--{f.name} is for --task {task} and does nothing with --task {self.task}: drop it.")

    def _refuse_without(self, needed: str, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise UserError(f"--{name} does nothing without --{needed}: add --{needed}.")

    def refuse(self, task: str, *names: str) -> None:
        """Refuse arguments that would do nothing for this task."""
        for name in names:
            if getattr(self, name) is not None:
                raise UserError(f"--{name} does nothing with --task {task}: leave it out.")

    def given_files(self) -> list[str]:
        """Names of the arguments that hold a local file or folder."""
        return [f.name for f in fields(self) if f.name.endswith(("_file", "_dir")) and not isinstance(f.default, bool)]


def _check_range(args: ScriptArguments, name: str, holds: Any, rule: str) -> None:
    value = getattr(args, name)
    if not holds(value):  # also refuses NaN
        raise UserError(f"--{name} must be {rule}, got {value}.")
