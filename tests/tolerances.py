# SPDX-License-Identifier: Apache-2.0
"""How close is equal? One table, by dtype, as a share of the larger magnitude."""

import torch

RELATIVE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}
