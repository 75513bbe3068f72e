# SPDX-License-Identifier: Apache-2.0
"""What is left of a model after noise, shift, rounding, pruning and merging, and whether its probabilities are right.

Needs scikit-learn, scipy, torchmetrics, pillow, and matplotlib for plots: `pip install "hf-sam[robustness]"`.
"""

# Measuring one model
from hf_sam.robustness.analyzer import RobustnessAnalyzer
from hf_sam.robustness.card import add_to_card

# Several checkpoints
from hf_sam.robustness.compare import Comparison, compare, compared

# What the scores are called and say
from hf_sam.robustness.metrics import METRICS, Metric

# Results
from hf_sam.robustness.results import Bin, Condition, Measurement, Report, RiskCoverage

__all__ = [
    "METRICS",
    "Bin",
    "Comparison",
    "Condition",
    "Measurement",
    "Metric",
    "Report",
    "RiskCoverage",
    "RobustnessAnalyzer",
    "add_to_card",
    "compare",
    "compared",
]
