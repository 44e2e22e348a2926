# SPDX-License-Identifier: Apache-2.0
"""PyTorch in channels_last memory: the sides of training_step.py that need it."""

import sys
from pathlib import Path

import numpy as np
import torch
from inference_torch_nets import torch_net
from safetensors.torch import load_file, save_file
from training_step_side import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    answer_commands,
)


def torch_step(folder, images, labels, precision):
    """fp32 as it is, bf16 by autocast."""
    net = torch_net(folder).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(images.to(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def save(path):
        state = net.state_dict()
        keys = load_file(folder / "weights.safetensors")
        values = {
            key: state[key.replace(".gamma", ".weight").replace(".beta", ".bias")]
            for key in keys
        }
        save_file({key: value.contiguous() for key, value in values.items()}, path)

    return step, save


if __name__ == "__main__":
    side, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    batch = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    answer_commands(*torch_step(folder, *batch, side.removeprefix("torch-")))
