# SPDX-License-Identifier: Apache-2.0
"""Measures of how flat the loss is around a checkpoint.

Needs scipy: `pip install "hf-sam[sharpness]"`. Plots need matplotlib too.
"""

# Measuring one model
from hf_sam.sharpness.analyzer import SharpnessAnalyzer

# During training
from hf_sam.sharpness.callback import SharpnessCallback
from hf_sam.sharpness.card import add_to_card

# Several checkpoints
from hf_sam.sharpness.compare import Comparison, Difference, compare

# The loss around and between weights
from hf_sam.sharpness.landscape import Interpolation, Landscape, interpolate, landscape_1d, landscape_2d

# A trainer's loss in place of the model's own
from hf_sam.sharpness.losses import TrainerLoss

# Results
from hf_sam.sharpness.results import Density, Eigenvalues, Estimate, Rise

__all__ = [
    "Comparison",
    "Density",
    "Difference",
    "Eigenvalues",
    "Estimate",
    "Interpolation",
    "Landscape",
    "Rise",
    "SharpnessAnalyzer",
    "SharpnessCallback",
    "TrainerLoss",
    "add_to_card",
    "compare",
    "interpolate",
    "landscape_1d",
    "landscape_2d",
]
