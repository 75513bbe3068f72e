# SPDX-License-Identifier: Apache-2.0
"""The commands that users run: finetune, find_rho and measure, one file each; needs the extra `cli`."""
