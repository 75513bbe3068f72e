# SPDX-License-Identifier: Apache-2.0
"""Make any `transformers.Trainer` sharpness-aware."""
