# SPDX-License-Identifier: Apache-2.0
"""Write training.json: optimisers, losses, averages and loss scales of torch and timm.

Run in an environment with timm and torch, from the repository's root:

    python tests/golden/make_training.py
"""

import json
from pathlib import Path

import cpu_torchvision  # noqa: F401
import numpy as np
import timm
import torch
from timm.optim.lamb import Lamb
from timm.utils import ModelEmaV2
from torch.nn import functional

# One with decay, one without; the second has a gradient large enough to be clipped.
SHAPES = {"weight": (3, 4), "bias": (5,)}
RATES = (0.1, 0.1, 0.02, 0.3)
DECAY = 0.05
FINITE = (True, True, True, False, True, False, False, True, True, True, True, True)
GROWTH_INTERVAL = 3


def parameters_and_gradients():
    """Return the values at the start, and the gradients of each step."""
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = [
        {name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in RATES
    ]
    return start, gradients


def make_sgd(groups):
    """Return torch's SGD with momentum."""
    return torch.optim.SGD(groups, lr=1, momentum=0.9)


def make_nag(groups):
    """Return torch's SGD with Nesterov's momentum."""
    return torch.optim.SGD(groups, lr=1, momentum=0.9, nesterov=True)


def make_lamb(groups):
    """Return timm's LAMB as OpenMMLab's RSB recipes configure it."""
    return Lamb(groups, lr=1, eps=1e-6, max_grad_norm=1.0)


def trajectory(make_optimizer, *, as_mxnet=False):
    """Return the parameters after each step.

    As in MXNet the momentum holds the rate of its step, and the decay of the weight
    after it.
    """
    start, gradients = parameters_and_gradients()
    tensors = {name: torch.tensor(values) for name, values in start.items()}
    decays = {"weight": DECAY, "bias": 0.0}
    optimizer = make_optimizer(
        [{"params": [tensors[n]], "weight_decay": decays[n]} for n in tensors]
    )
    rows, last_rate = [], RATES[0]
    for rate, step_gradients in zip(RATES, gradients):
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(step_gradients[name])
            if as_mxnet and optimizer.state[tensor]:
                optimizer.state[tensor]["momentum_buffer"] *= last_rate / rate
        optimizer.step()
        last_rate = rate
        for name, tensor in tensors.items():
            if as_mxnet:
                buffer = optimizer.state[tensor]["momentum_buffer"]
                buffer += decays[name] * (tensor - before[name])
        rows.append({name: tensor.tolist() for name, tensor in tensors.items()})
    return rows


def losses():
    """Return logits, soft targets, and loss and gradient of each image."""
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(0, 4, (3, 5)), requires_grad=True)
    targets = torch.softmax(torch.tensor(rng.normal(0, 2, (3, 5))), 1)
    values = {"logits": logits.tolist(), "targets": targets.tolist()}
    for name, loss in (
        ("cross_entropy", functional.cross_entropy(logits, targets, reduction="none")),
        (
            "binary",
            functional.binary_cross_entropy_with_logits(
                logits, targets, reduction="none"
            ).sum(1),
        ),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        values[name] = {"losses": loss.tolist(), "gradient": gradient.tolist()}
    return values


def averages():
    """Return the values of a BN and timm's average of them after each change."""
    net = torch.nn.BatchNorm1d(3).double()
    average = ModelEmaV2(net, decay=0.9)
    rng = np.random.default_rng(2)
    values, means = [], []
    for _ in range(4):
        state = {
            name: torch.tensor(rng.normal(size=3))
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        net.load_state_dict(state, strict=False)
        average.update(net)
        kept = average.module.state_dict()
        values.append({name: value.tolist() for name, value in state.items()})
        means.append({name: kept[name].tolist() for name in state})
    return {"decay": 0.9, "values": values, "averages": means}


def loss_scales():
    """Return torch's loss scale after steps with finite and infinite gradients."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=1024.0, growth_interval=GROWTH_INTERVAL
    )
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scales = []
    for is_finite in FINITE:
        optimizer.zero_grad()
        loss = parameter.sum() * (1.0 if is_finite else float("inf"))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {
        "growth_interval": GROWTH_INTERVAL,
        "start": 1024.0,
        "finite": FINITE,
        "scales": scales,
    }


def main():
    """Write training.json beside this script."""
    start, gradients = parameters_and_gradients()
    content = {
        "versions": {"timm": timm.__version__, "torch": torch.__version__},
        "start": {name: values.tolist() for name, values in start.items()},
        "gradients": [
            {name: values.tolist() for name, values in row.items()} for row in gradients
        ],
        "rates": RATES,
        "decay": DECAY,
        "sgd": trajectory(make_sgd),
        "nag": trajectory(make_nag, as_mxnet=True),
        "lamb": trajectory(make_lamb),
        "losses": losses(),
        "ema": averages(),
        "loss_scale": loss_scales(),
    }
    rows = (f"{json.dumps(key)}: {json.dumps(row)}" for key, row in content.items())
    golden = Path(__file__).with_name("training.json")
    golden.write_text("{" + ",\n".join(rows) + "}\n")


if __name__ == "__main__":
    main()
