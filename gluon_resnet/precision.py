# SPDX-License-Identifier: Apache-2.0
"""The precisions that a network can run in."""

PRECISIONS = ("fp32", "bf16", "int8")
