# SPDX-License-Identifier: Apache-2.0
"""Training: loop.py reads as it goes; recipe.py says what decides the outcome."""
