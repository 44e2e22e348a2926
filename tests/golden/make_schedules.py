# SPDX-License-Identifier: Apache-2.0
"""Write schedules.json: learning rates of other projects' schedulers, step by step.

Run in an environment with torch, timm and mmengine-lite 0.10.7, from the repository's
root:

    python tests/golden/make_schedules.py
"""

import json
from pathlib import Path

import cpu_torchvision  # noqa: F401
import mmengine
import timm
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR
from timm.scheduler import CosineLRScheduler
from torch.optim import lr_scheduler

PEAK = 0.4
STEPS = 6  # in an epoch


def optimizer():
    """Return an optimizer whose rate is to be watched."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def rates(watched, epochs, *, after_step=(), after_epoch=()):
    """Return the rate of every step of a training with these schedulers."""
    seen = []
    for _ in range(epochs):
        for _ in range(STEPS):
            seen.append(watched.param_groups[0]["lr"])
            watched.step()
            for scheduler in after_step:
                scheduler.step()
        for scheduler in after_epoch:
            scheduler.step()
    return seen


def mmengine_steps():
    """Return the rates of OpenMMLab's MultiStepLR, by epoch."""
    watched = optimizer()
    scheduler = MultiStepLR(watched, milestones=[3, 6, 9], gamma=0.2)
    return rates(watched, 10, after_epoch=[scheduler])


def mmengine_cosine(low):
    """Return the rates of OpenMMLab's RSB (low > 0) and CUB schedules, shortened."""
    watched = optimizer()
    warmup = LinearLR.build_iter_from_epoch(
        watched, start_factor=0.01, begin=0, end=2, epoch_length=STEPS
    )
    cosine = CosineAnnealingLR(watched, T_max=8, eta_min=low, begin=2, end=10)
    return rates(watched, 10, after_step=[warmup], after_epoch=[cosine])


def torch_cosine():
    """Return the rates of torch's linear warm-up and cosine, per step."""
    watched = optimizer()
    parts = (
        lr_scheduler.LinearLR(watched, start_factor=0.01, total_iters=2 * STEPS),
        lr_scheduler.CosineAnnealingLR(watched, T_max=8 * STEPS, eta_min=0.004),
    )
    scheduler = lr_scheduler.SequentialLR(watched, parts, milestones=[2 * STEPS])
    return rates(watched, 10, after_step=[scheduler])


def timm_cosine():
    """Return the rates of timm's cosine after a warm-up, per step."""
    watched = optimizer()
    scheduler = CosineLRScheduler(
        watched,
        t_initial=8 * STEPS,
        lr_min=0.004,
        warmup_t=2 * STEPS,
        warmup_lr_init=0.01 * PEAK,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    seen = []
    for step in range(10 * STEPS):
        scheduler.step_update(step)
        seen.append(watched.param_groups[0]["lr"])
    return seen


def main():
    """Write schedules.json beside this script."""
    content = {
        "versions": {m.__name__: m.__version__ for m in (mmengine, timm, torch)},
        "peak": PEAK,
        "steps_per_epoch": STEPS,
        "mmengine_steps": mmengine_steps(),
        "mmengine_rsb": mmengine_cosine(0.004),
        "mmengine_cub": mmengine_cosine(0),
        "torch_cosine": torch_cosine(),
        "timm_cosine": timm_cosine(),
    }
    lines = (f"{json.dumps(name)}: {json.dumps(content[name])}" for name in content)
    golden = Path(__file__).with_name("schedules.json")
    golden.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
