# SPDX-License-Identifier: Apache-2.0
"""Recommend a radius to start with."""
