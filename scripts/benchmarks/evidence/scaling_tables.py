# SPDX-License-Identifier: Apache-2.0
"""What does SAM cost on many devices? The tables of docs/scaling.md, computed from what a step sends."""

from __future__ import annotations

from collections.abc import Callable

from scripts.benchmarks.common import step_time
from scripts.benchmarks.common.step_time import Machine
from scripts.benchmarks.common.traffic import ENGINES, SCOPES, Weights, step
from scripts.benchmarks.evidence.pages import markdown

COUNTED = Weights(19_488, tensors=20, buffers=64)
"""The Llama of `tests/distributed/test_scaling.py`."""
GROUPS = {"FSDP2": {"kept": 7_808}, "HSDP": {"kept": 128, "tied": 7_680}}
"""How FSDP2 groups its tensors there: by layer with the rest in one group, or with groups of the rest."""
SIZES = {"110M": 110e6, "1B": 1e9, "7B": 7e9, "70B": 70e9}
DEVICES = (1, 8, 64, 512)
NETWORKS = {
    "450 GB/s, inside one machine": 450e9,
    "400 GB/s, eight adapters of 400 Gb/s": 400e9,
    "50 GB/s, one of 400 Gb/s": 50e9,
    "12.5 GB/s, one of 100 Gb/s": 12.5e9,
    "3.1 GB/s, one of 25 Gb/s": 3.125e9,
}
TOKENS = (1024, 4096, 16384, 65536)
COLUMNS = (("DDP", "batch"), ("DDP", "device"), ("FSDP2", "batch"), ("HSDP", "batch"), ("ZeRO 2", "batch"))


def counted_weights(engine: str) -> Weights:
    """Return the weights of the model that was counted, as an engine groups them."""
    return COUNTED._replace(**GROUPS.get(engine, {}))


def counted() -> list[str]:
    """Return the bytes of a step of two micro-batches of a small model: 2 processes, HSDP 4."""
    rows = []
    for engine in ENGINES:
        cells = []
        for scope in (None, *SCOPES):
            found = step(engine, scope, counted_weights(engine), micro_batches=2, shards=2)
            sizes = sorted(found.sizes().items()) if found else []
            cells.append("<br>".join(f"{kind} {size:,.0f}" for kind, size in sizes) or "refused")
        rows.append([engine, *cells])
    return markdown(["engine", "plain", *(f'`"{scope}"`' for scope in SCOPES)], rows)


def sent() -> list[str]:
    """Return the gigabytes that a device sends in a step, plain and with SAM."""
    rows = []
    for name, count in SIZES.items():
        for devices in DEVICES[1:]:
            pairs = [[step_time.sent(engine, s, count, devices) for s in (None, scope)] for engine, scope in COLUMNS]
            cells = [" → ".join(_number(x / 1e9) for x in pair if x is not None) for pair in pairs]
            rows.append([name, str(devices), *cells])
    return markdown(["weights", "devices", *(f'{engine}, `"{scope}"`' for engine, scope in COLUMNS)], rows)


def memory() -> list[str]:
    """Return the gigabytes that a device holds, and those that SAM adds."""
    rows = []
    for name, count in SIZES.items():
        for devices in DEVICES:
            found = [step_time.held(engine, devices) for engine in ENGINES]
            cells = [" + ".join(_number(x * count / 1e9) for x in pair) for pair in found]
            rows.append([name, str(devices), *cells])
    return markdown(["weights", "devices", *ENGINES], rows)


def time() -> list[str]:
    """Return the time of a step with SAM divided by that of a plain one, on 64 devices."""
    rows = []
    for name, bandwidth in list(NETWORKS.items())[1:]:
        for tokens in TOKENS:
            found = [step_time.ratio(e, s, tokens, 64, Machine(network=bandwidth)) for e, s in COLUMNS]
            rows.append([name, f"{tokens:,}", *(f"{x:.2f}x" for x in found if x is not None)])
    return markdown(["bandwidth", "tokens", *(f'{engine}, `"{scope}"`' for engine, scope in COLUMNS)], rows)


def device() -> list[str]:
    """Return from how many tokens on DDP hides its reduction, and what scope "device" saves below."""
    rows = []
    for name, bandwidth in NETWORKS.items():
        machine = Machine(inside=bandwidth, network=bandwidth)
        tokens = step_time.covering_tokens(64, machine)
        cells = []
        for share in (1, 2, 4, 8):
            times = [step_time.step_seconds("DDP", scope, tokens / share, 64, machine) for scope in ("batch", "device")]
            cells.append(f"{1 - times[1] / times[0]:.0%}" if times[0] and times[1] else "")
        rows.append([name, f"{tokens:,.0f}", *cells])
    return markdown(["bandwidth", "tokens", "saved there", "at a half", "at a quarter", "at an eighth"], rows)


def _number(x: float) -> str:
    """Return a number with two digits, or without decimals."""
    return f"{x:,.0f}" if x >= 10 else f"{x:.1f}" if x >= 1 else f"{x:.2g}"


TABLES: dict[str, Callable[[], list[str]]] = {
    "scaling counted": counted,
    "scaling sent": sent,
    "scaling memory": memory,
    "scaling time": time,
    "scaling device": device,
}
"""By the name between the marks in the page."""
