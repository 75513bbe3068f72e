# SPDX-License-Identifier: Apache-2.0
"""Start Python processes that have imported torch, transformers and hf_sam already: copies of one that waits.

Importing takes a process ten seconds and a test of it often less. Where a launcher, an import or a quiet start is what
is tested, start Python afresh instead.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.warm_imports"])


def environment() -> dict[str, str]:
    """Return the environment for a launch: one thread a process, nothing left of an earlier launch."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC", "ACCELERATE_", "FSDP_", "GROUP_", "ROLE_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _run(program: str, arguments: list[str], variables: dict[str, str], folder: str, log: str) -> None:
    """Become the program: in the new process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))  # as Python does
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def start(program: str, *arguments: Any, log: Path, cwd: Path = ROOT, **variables: str) -> BaseProcess:
    """Start a module, or a script by its path; what it prints goes to the end of the file `log`."""
    given = (program, [str(a) for a in arguments], {**environment(), **variables}, str(cwd), str(log))
    process = _context.Process(target=_run, args=given)
    process.start()
    return process


def run(program: str, *arguments: Any, log: Path, timeout: float = TIMEOUT, **more: Any) -> int:
    """Start and wait; return the exit status, which is -9 for a process that was killed with signal 9."""
    process = start(program, *arguments, log=log, **more)
    try:
        process.join(timeout)
        if process.exitcode is None:
            raise TimeoutError(f"{program} {arguments} is still running:\n{end_of(log)}")
        return process.exitcode
    finally:
        end(process)


def start_together(
    processes: int, program: str, *arguments: Any, logs: Path, **variables: str
) -> tuple[list[BaseProcess], TCPStore]:
    """Start as torchrun would, with the variables that it sets: several processes meet at the store."""
    logs.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    everyone = {
        **variables,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # it is here, not on the first process
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        meeting = {**everyone, **own} if processes > 1 else variables
        started.append(start(program, *arguments, log=logs / f"{rank}.log", **meeting))
    return started, store


def end_together(started: list[BaseProcess], timeout: float = TIMEOUT) -> list[int]:
    """Wait until all have ended well or one has not, end the others as torchrun does; return their exit statuses."""
    try:
        deadline = time.monotonic() + timeout
        waiting = list(started)
        while waiting and time.monotonic() < deadline and not any(p.exitcode for p in started):
            multiprocessing.connection.wait([p.sentinel for p in waiting], deadline - time.monotonic())
            waiting = [p for p in waiting if p.exitcode is None]
    finally:
        end(*started)
    return [p.exitcode if p.exitcode is not None else -signal.SIGKILL for p in started]


def end(*started: BaseProcess) -> None:
    """End what still runs."""
    for process in started:
        process.terminate()
    for process in started:
        process.join(10)
        process.kill()
        process.join()


def run_together(processes: int, program: str, *arguments: Any, logs: Path, **variables: str) -> None:
    """Run to the end on so many processes; raise with what they printed when one fails."""
    started, _store = start_together(processes, program, *arguments, logs=logs, **variables)
    codes = end_together(started)
    if any(codes):
        printed = "\n".join(end_of(logs / f"{rank}.log") for rank in range(processes))
        raise AssertionError(f"{program} {arguments} ended with {codes}:\n{printed}")


def end_of(log: Path) -> str:
    """Return the last lines of what a process printed."""
    return log.read_text(errors="replace")[-6000:] if log.exists() else ""
