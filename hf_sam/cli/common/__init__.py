# SPDX-License-Identifier: Apache-2.0
"""What the tasks and the scripts share: arguments, files, labels, models, metrics, checkpoints, the summary."""
