# SPDX-License-Identifier: Apache-2.0
"""Choose which parameters move."""
