# SPDX-License-Identifier: Apache-2.0
"""Say how long epsilon is now."""
