# SPDX-License-Identifier: Apache-2.0
"""From record files to batches of prepared images."""
