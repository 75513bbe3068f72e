# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of the README, made from the files in scripts/benchmarks/results alone."""
