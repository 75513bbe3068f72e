# SPDX-License-Identifier: Apache-2.0
"""How are several programs timed a step of each at a time, so that they meet the machine in the same moods?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

STEP = "seconds of a step:"


def in_turns(commands: Mapping[str, Sequence[str]], steps: int) -> dict[str, list[list[float]]]:
    """Run programs that call `Turns.end_step`, a step of each in turn, back and forth.

    Each is a process of its own, so that none finds the memory as another one left it. They wait for each other, all of
    them in memory. Their first steps, while the next ones are not started yet, warm up and do not count.

    Args:
        commands: command line of each program, by name.
        steps: how many steps each of them takes, at least 2.

    Returns:
        What `Turns.end_step` said of all steps but the first of each: the seconds first.

    Raises:
        RuntimeError: if a program ends too early.
    """
    said: dict[str, list[list[float]]] = {name: [] for name in commands}
    with ExitStack() as stack:
        running: dict[str, subprocess.Popen[str]] = {}
        for name, command in commands.items():
            program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running[name] = stack.enter_context(program)
            stack.callback(program.kill)  # for a program that is not at its end, after an error or Ctrl-C
            _listen(name, program)
        for turn in range(1, steps):
            for name in list(running) if turn % 2 else reversed(running):
                said[name].append(_go_on(name, running[name]))
        for program in running.values():
            program.communicate()  # no more to wait for: let it end by itself
    return said


def _go_on(name: str, program: subprocess.Popen[str]) -> list[float]:
    if program.stdin is not None:
        program.stdin.write("\n")
        program.stdin.flush()
    return _listen(name, program)


def _listen(name: str, program: subprocess.Popen[str]) -> list[float]:
    """Return what the program says of its next step; libraries may say other things before."""
    for line in program.stdout or ():
        if line.startswith(STEP):
            return [float(number) for number in line.removeprefix(STEP).split()]
    raise RuntimeError(f"{name} ended before its last step, with status {program.wait()}.")


class Turns:
    """The program's side: says how long a step took, and waits until it is its turn again.

    Args:
        now: the clock. That of the process does not run while it waits, another one is read again after the wait.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._start = now()

    def end_step(self, *more: float) -> None:
        """Say how long it is since the last turn began; return when the next one begins, or when nobody waits.

        Args:
            more: other numbers to say of the step.
        """
        print(STEP, self.now() - self._start, *more, flush=True)
        sys.stdin.readline()
        self._start = self.now()
