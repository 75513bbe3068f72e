# SPDX-License-Identifier: Apache-2.0
"""Measurements by name: functions that return one number of a loss function."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from hf_sam.sharpness import rises, spectrum
from hf_sam.sharpness.loss_function import LossFunction

Measure = Callable[[LossFunction, float, int], float]
"""From the loss, the radius of the rises, and the seed of what is random."""

MEASURES: dict[str, Measure] = {
    "loss": lambda loss_function, rho, seed: loss_function.loss(),
    "gradient_norm": lambda loss_function, rho, seed: float(loss_function.gradient()[1].norm()),
    "lambda_max": lambda loss_function, rho, seed: spectrum.eigenvalues(loss_function, 1, "LA", 1e-3, seed, 100)[0][0],
    "sam_sharpness": lambda loss_function, rho, seed: rises.sam_rise(loss_function, rho, None)[0],
    "worst_case": lambda loss_function, rho, seed: rises.worst_rise(loss_function, rho, 20, None)[0],
    "trace": lambda loss_function, rho, seed: statistics.mean(spectrum.trace(loss_function, 30, seed)),
}
"""What `compare` measures on each fold and `SharpnessCallback` logs, with the defaults of `SharpnessAnalyzer`."""
