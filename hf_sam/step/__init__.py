# SPDX-License-Identifier: Apache-2.0
"""Climb, evaluate again, come back: one sharpness-aware step."""
