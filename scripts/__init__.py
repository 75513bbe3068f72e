# SPDX-License-Identifier: Apache-2.0
"""The programs that users run, one command a file; those of the maintainers are in `scripts/benchmarks/`."""
