# SPDX-License-Identifier: Apache-2.0
"""Networks as ONNX files, proven before they get their names."""
