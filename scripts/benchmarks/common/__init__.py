# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks share: clocks, grids, runs, statistics, and the peers that they compare with."""
