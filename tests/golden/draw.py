# SPDX-License-Identifier: Apache-2.0
"""Parameters and images that depend on nothing but NumPy, for both sides of a parity.

The values of a tensor depend on its key and shape alone, so each side may draw in any
order. They keep the signal of a 269-layer net near 1: with larger ones the activations
grow by orders of magnitude and a softmax over them turns rounding into difference.
"""

import zlib

import numpy as np


def draw_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the float32 tensor of a torch key: a weight, a bias or BN statistics."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        values = generator.uniform(0.5, 2.0, shape)
    elif key.endswith("weight") and len(shape) == 1:  # gamma of a BN
        values = generator.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:  # biases, beta and running mean
        values = generator.normal(0, 0.1, shape)
    else:
        values = generator.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    return values.astype(np.float32)


def fill_gluon(net) -> None:
    """Give each parameter of a Gluon net what its name draws; frozen ones stay."""
    import mxnet as mx  # which the environment of the goldens does not have

    for name, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req != "null" or "running" in name:
            key = name.replace("gamma", "weight")
            # A net that has run takes no NumPy array: its layout is oneDNN's.
            parameter.set_data(mx.nd.array(draw_tensor(key, parameter.shape)))


def draw_images(shape: tuple[int, ...]) -> np.ndarray:
    """Draw normal float32 images (N, C, H, W)."""
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def sample(array: np.ndarray, count: int = 12) -> list[float]:
    """Pick `count` values at drawn positions and the largest magnitude, as floats."""
    flat = array.ravel()
    positions = np.random.default_rng(1).integers(0, flat.size, count)
    return [float(f"{v:.8g}") for v in (*flat[positions], np.abs(flat).max())]
