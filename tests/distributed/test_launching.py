# SPDX-License-Identifier: Apache-2.0
"""scripts/accelerate/*.yaml: does accelerate take them, and start what each says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from transformers import AutoModelForSequenceClassification

from tests import warm
from tests.distributed.launching import (
    DIGITS,
    SCRIPT,
    accelerate,
    finish,
    found,
    free_port,
    results,
    reviews,
    runs,
    same_weights,
    start,
)

pytestmark = pytest.mark.distributed

FOLDER = warm.ROOT / "scripts" / "accelerate"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
BLOCKS = ("--fsdp_transformer_layer_cls_to_wrap", "BertLayer")
# All that decides over what is started; the rest of the environment is the caller's.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}


def parsed(name: str, *more: str) -> Any:
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / name), *more, "script.py"])
    return _validate_launch_command(args)[0]


@pytest.mark.parametrize("name", FILES)
def test_accelerate_knows_every_key(name: str) -> None:
    load_config_from_file(str(FOLDER / name))  # raises for an unknown key, but for one of fsdp_config
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(yaml.safe_load((FOLDER / name).read_text()).get("fsdp_config", {})) <= set(known)


@pytest.mark.parametrize("name", FILES)
def test_every_line_says_what_it_is_for(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    settings = [line for line in lines if ":" in line and not line.startswith("#") and line != "fsdp_config:"]
    assert all("  # " in line for line in settings)
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert f"accelerate launch --config_file scripts/accelerate/{name}" in head
    assert "# Tested: " in head


def test_one_gpu_is_shown_to_one_process() -> None:
    _, variables = prepare_simple_launcher_cmd_env(parsed("single_gpu.yaml"))
    assert variables["CUDA_VISIBLE_DEVICES"] == "0"
    assert variables["ACCELERATE_USE_CPU"] == "False"


def test_the_settings_of_fsdp2_reach_the_processes() -> None:
    args = parsed("fsdp2.yaml")
    variables = prepare_multi_gpu_env(args)
    assert {name: variables[name] for name in FSDP2} == FSDP2
    assert args.nproc_per_node == "2"


def test_several_machines_meet_at_the_first() -> None:
    args = parsed("multi_node.yaml", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "2", 1)
    assert (args.rdzv_endpoint, args.rdzv_backend) == ("10.0.0.1:29500", "static")


@pytest.mark.parametrize("name", ["cpu", pytest.param("single_gpu", marks=pytest.mark.everything)])
def test_one_process_trains(name: str, tmp_path: Path) -> None:
    # cpu.yaml says that more would be ignored without a word, and names torchrun: accelerate's issue 2741.
    more = ["--num_processes", "2"] if name == "cpu" else []
    finish(start(accelerate(name, *more, SCRIPT, *DIGITS, "--max_steps", "2", "--output_dir", tmp_path / "out")))
    assert results(tmp_path / "out")["processes"] == 1


@pytest.fixture(scope="module")
def torchrun_result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the processes that torchrun starts, without it: `test_finetune.py` runs it."""
    folder = tmp_path_factory.mktemp("torchrun")
    _, *module = runs(folder, {"run": [*DIGITS, "--output_dir", str(folder / "out")]})
    warm.run_together(2, *module, logs=folder)
    return found(folder, "run")[0]


def test_ddp_trains_what_torchrun_trains(torchrun_result: dict[str, Any], tmp_path: Path) -> None:
    argv = {"run": [*DIGITS, "--output_dir", str(tmp_path / "out")]}
    finish(start(accelerate("ddp", *runs(tmp_path, argv))))
    for process in found(tmp_path, "run"):
        assert (process["status"], process["world"], process["engine"]) == (0, 2, "MULTI_CPU")
        assert same_weights(process, torchrun_result)


@pytest.mark.everything  # two machines train as one in test_nodes.py, by a recipe of the docs in test_recipes.py
def test_two_machines_train_what_torchrun_trains(torchrun_result: dict[str, Any], tmp_path: Path) -> None:
    argv = runs(tmp_path, {"run": [*DIGITS, "--output_dir", str(tmp_path / "out")]})
    here = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    ranks = ("0", "1")
    finish(*(start(accelerate("multi_node", *here, "--machine_rank", rank, *argv)) for rank in ranks))
    for process in found(tmp_path, "run"):
        assert (process["status"], process["world"], process["engine"]) == (0, 2, "MULTI_CPU")
        assert same_weights(process, torchrun_result)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of fsdp2.yaml on CPUs, which accelerate itself would give DDP."""
    folder = tmp_path_factory.mktemp("fsdp2")
    text = reviews(folder)
    evaluate = ["--eval_strategy", "steps", "--eval_steps", "1"]
    resume = ["--resume_from_checkpoint", str(folder / "trained" / "checkpoint-2")]
    argv = {
        "trained": [*text, "--output_dir", str(folder / "trained")],
        "resumed": [*text, "--output_dir", str(folder / "resumed"), *resume],
        "evaluated": [*text, "--output_dir", str(folder / "evaluated"), *evaluate],
        "plain": [*text, "--output_dir", str(folder / "plain"), "--sam_variant", "none"],
        "lora": [*text, "--output_dir", str(folder / "lora"), "--lora_r", "2"],
    }
    finish(start(accelerate("fsdp2", *BLOCKS, *runs(folder, argv))))
    return folder


@pytest.mark.parametrize("name", ["trained", "resumed", "evaluated"])
def test_fsdp2_spreads_the_weights(name: str, sharded: Path) -> None:
    first, second = found(sharded, name)
    assert (first["status"], first["world"], first["engine"]) == (0, 2, "FSDP")
    assert "DTensor" in first["kinds"]
    assert same_weights(first, second)


def test_fsdp2_leaves_an_ordinary_model_behind(sharded: Path) -> None:
    trained = found(sharded, "trained")[0]
    for folder in (sharded / "trained", sharded / "trained" / "checkpoint-4"):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert same_weights(trained, {f"weight {name}": p.detach() for name, p in model.named_parameters()})


def test_fsdp2_resumes_with_the_same_bits(sharded: Path) -> None:
    trained, resumed = found(sharded, "trained")[0], found(sharded, "resumed")[0]
    assert trained["steps"] == resumed["steps"] == 4
    assert same_weights(trained, resumed)


def largest_difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    return max((left[name] - right[name]).abs().max().item() for name in left if name.startswith("weight "))


def test_under_fsdp2_evaluating_between_steps_leaves_no_weight_out(sharded: Path) -> None:
    # After an evaluation FSDP2 keeps the weights of its outermost group gathered, under other objects.
    trained, evaluated, plain = (found(sharded, name)[0] for name in ("trained", "evaluated", "plain"))
    assert largest_difference(trained, evaluated) < 1e-6
    assert largest_difference(trained, plain) > 1e-3


def test_fsdp2_resumes_from_a_sharded_checkpoint_and_ends_with_an_ordinary_model(sharded: Path, tmp_path: Path) -> None:
    text, out = reviews(tmp_path), tmp_path / "out"
    argv = {
        "trained": [*text, "--output_dir", str(out)],
        "resumed": [
            *text,
            "--output_dir",
            str(tmp_path / "resumed"),
            "--resume_from_checkpoint",
            f"{out}/checkpoint-2",
        ],
    }
    settings = parsed("fsdp2.yaml", *BLOCKS, "--fsdp_state_dict_type", "SHARDED_STATE_DICT")
    launched = {k: v for k, v in prepare_multi_gpu_env(settings).items() if k.startswith(("ACCELERATE_", "FSDP_"))}
    _, *module = runs(tmp_path, argv)
    warm.run_together(2, *module, logs=tmp_path, **launched)
    assert not (out / "checkpoint-2" / "model.safetensors").exists()
    whole = found(sharded, "trained")[0]
    for name in argv:
        assert same_weights(whole, found(tmp_path, name)[0])
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert same_weights(whole, {f"weight {name}": p.detach() for name, p in model.named_parameters()})


def test_adapters_are_not_merged_into_shards(sharded: Path) -> None:
    first, second = found(sharded, "lora")
    assert first["status"] == second["status"] == 2
    assert "add --lora_merge False" in first["err"]
