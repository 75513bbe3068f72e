# SPDX-License-Identifier: Apache-2.0
"""What the maintainers run: benchmarks, grids of experiments, and the tables and figures of the documentation."""
