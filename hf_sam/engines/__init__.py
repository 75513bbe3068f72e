# SPDX-License-Identifier: Apache-2.0
"""Say which engines can run two passes, and how each of them does."""
