# SPDX-License-Identifier: Apache-2.0
"""Work on many tensors as on one vector."""
