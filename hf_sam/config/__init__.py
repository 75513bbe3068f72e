# SPDX-License-Identifier: Apache-2.0
"""Hold what a user can ask for, and check that it makes sense."""
