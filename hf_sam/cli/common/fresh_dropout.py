# SPDX-License-Identifier: Apache-2.0
"""What are the same dropout masks in both passes worth? A trainer without them, to compare with."""

from __future__ import annotations

from typing import Any

import torch

from hf_sam import SAMTrainer


class FreshDropoutTrainer(SAMTrainer):
    """Draws new dropout masks in the second pass, where `SAMTrainer` repeats those of the first."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; in the second pass with a random stream of its own, which ends with the pass."""
        if self.in_descent_pass:
            torch.manual_seed(int(torch.randint(2**31, ())))
        return super().compute_loss(*args, **kwargs)
