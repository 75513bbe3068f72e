# SPDX-License-Identifier: Apache-2.0
"""How do files that people have become rows?"""
