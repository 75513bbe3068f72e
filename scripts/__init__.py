# SPDX-License-Identifier: Apache-2.0
"""The programs around the library; each file here is one command."""
