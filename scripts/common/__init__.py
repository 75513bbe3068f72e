# SPDX-License-Identifier: Apache-2.0
"""What every task and every script shares: arguments, files, labels, models, metrics, checkpoints, the summary."""
