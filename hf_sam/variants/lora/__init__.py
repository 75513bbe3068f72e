# SPDX-License-Identifier: Apache-2.0
"""Flatten the loss around a model with LoRA adapters."""
