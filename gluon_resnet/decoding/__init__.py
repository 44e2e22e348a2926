# SPDX-License-Identifier: Apache-2.0
"""What Pillow leaves open between a file's bytes and RGB pixels of 8 bits."""
