# SPDX-License-Identifier: Apache-2.0
"""Turn the files that people have into rows."""
