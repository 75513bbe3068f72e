# SPDX-License-Identifier: Apache-2.0
"""Says at the end of the session how many faults of which phase and kind were injected."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, counts in report.user_properties:
            if name == "injected faults":
                terminalreporter.write_line(", ".join(f"{key}: {count}" for key, count in sorted(counts.items())))
