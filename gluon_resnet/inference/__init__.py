# SPDX-License-Identifier: Apache-2.0
"""Inference on the CPU: a network's graph, rewritten, planned and run by oneDNN.

form.py is the way in, and workers.py the threads that it runs on. fold.py, rewrites.py
and split_attention.py change the graph, steps.py joins its operators, operators.py and
plan.py make them kernels of onednn.py with their memory and weights (packing.py), but
for the 3x3 convolutions that winograd/ has faster kernels for.
int8.py is a model of calibrated ranges (calibration.py) and its file. What no kernel
computes (coverage.py) is left to MXNet (fallback.py).
"""

from gluon_resnet import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
