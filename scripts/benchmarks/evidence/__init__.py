# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of README.md and docs, made from the files in scripts/benchmarks/results and from the code."""
