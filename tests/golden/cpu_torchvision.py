# SPDX-License-Identifier: Apache-2.0
"""Import before timm or torchvision where torch has no CUDA.

The wheel of torchvision on PyPI is built for CUDA; beside a CPU build of torch it
misses operators whose shapes it declares when it is imported.
"""

import torch

for name in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou) -> Tensor"
    )
