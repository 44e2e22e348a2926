# SPDX-License-Identifier: Apache-2.0
"""Training from record files, epoch by epoch, safe against being killed."""

import argparse
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import mxnet as mx
from mxnet import autograd, gluon
from mxnet.gluon import HybridBlock, nn
from tqdm import tqdm

from gluon_resnet import command
from gluon_resnet.augment import one_hot, pad_and_crop, random_erasing, random_flip
from gluon_resnet.card import Card, write_card
from gluon_resnet.create import create_model
from gluon_resnet.errors import InputError
from gluon_resnet.files import replacing
from gluon_resnet.loader import (
    Batch,
    Transform,
    training_batches,
    validation_batches,
)
from gluon_resnet.preprocess import Protocol
from gluon_resnet.records import RecordFile, in_memory
from gluon_resnet.validate import validate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training but the images."""

    model: str
    num_classes: int
    protocol: Protocol
    epochs: int
    batch_size: int
    learning_rate: float  # the peak
    warmup_epochs: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    pad: int  # pixels on each side, before the random crop
    flip: bool
    erase: float  # probability of an erased rectangle in an image
    seed: int
    data_set: Optional[str] = None  # whose class names the card of the weights tells


RECIPES = {
    # What it gave, where and in what time: gluon_resnet/bundled/README.md.
    "fashion_mnist": Recipe(
        model="cifar_resnet20_v1",
        num_classes=10,
        # Mean and deviation of all pixels of the 60,000 training images.
        protocol=Protocol(size=28, crop_pct=1, mean=(0.2860,) * 3, std=(0.3530,) * 3),
        epochs=40,
        batch_size=128,
        learning_rate=0.1,
        warmup_epochs=1,
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.1,
        pad=2,
        flip=True,
        erase=0.25,
        seed=0,
        data_set="fashion_mnist",
    ),
}


def learning_rate(recipe: Recipe, epochs_done: float) -> float:
    """Linear warm-up to the peak, then a cosine to zero (arXiv:1608.03983, eq. 5)."""
    if epochs_done < recipe.warmup_epochs:
        return recipe.learning_rate * epochs_done / recipe.warmup_epochs
    share = (epochs_done - recipe.warmup_epochs) / (
        recipe.epochs - recipe.warmup_epochs
    )
    return recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2


def transforms(recipe: Recipe) -> tuple[Transform, ...]:
    """What is done to a training image, in this order."""
    fill = tuple(round(255 * mean) for mean in recipe.protocol.mean)
    erasing = partial(
        random_erasing, probability=recipe.erase, fill=fill, area=(0.02, 0.2)
    )
    crop = partial(pad_and_crop, pad=recipe.pad)
    return (crop, random_flip, erasing) if recipe.flip else (crop, erasing)


class _MeanPool(nn.GlobalAvgPool2D):
    """Global pooling whose gradient keeps the next layers on oneDNN's fast path.

    oneDNN 2.4 hands the gradient of its own global pooling on in a layout that its
    fast BatchNorm does not take; in CIFAR nets that costs half of a training step.
    (A subclass, because Gluon refuses to replace a layer by one of another class.)
    """

    def hybrid_forward(self, F, x):
        return F.mean(x, axis=(2, 3), keepdims=True)


def train(
    recipe: Recipe,
    train_rec: Path,
    val_rec: Path,
    *,
    out: Path,
    resume: bool = False,
    ctx: Optional[mx.Context] = None,
) -> list[dict]:
    """Train by `recipe`; returns the log, one entry per epoch.

    Writes into the folder `out` the last finished epoch (epoch-NNNN), log.jsonl and, at
    the end, MODEL.params with its card. `resume` goes on from the last finished epoch,
    or begins where there is none; the outcome is the same as without the break, bit for
    bit.

    Raises InputError for record files that do not fit, for an `out` that is in use or
    cannot be written, and for a loss that is not finite.
    """
    ctx = ctx or mx.cpu()
    train_records = RecordFile.open(train_rec, num_classes=recipe.num_classes)
    val_records = RecordFile.open(val_rec, num_classes=recipe.num_classes)
    mx.random.seed(recipe.seed)
    net = create_model(recipe.model, num_classes=recipe.num_classes, ctx=ctx)
    net.pool = _MeanPool()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        net.collect_params(),
        "nag",
        {"momentum": recipe.momentum, "wd": recipe.weight_decay},
        kvstore=None,
    )
    history = []
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        if not resume:
            raise InputError(
                f"{out} holds {checkpoint.name} of an earlier run: give --resume to go "
                "on from it or another --out"
            )
        history = restore(checkpoint, recipe, net, trainer, ctx)
    write_log(out, history)  # a folder that cannot be written shall fail here
    # Inference with MXNet reorders weights in place, some time after the call. Training
    # that goes on with these weights rounds now one way, now the other.
    val_net = create_model(recipe.model, num_classes=recipe.num_classes, ctx=ctx)
    val_net.hybridize(static_alloc=True, static_shape=True)
    read_train = in_memory(train_records)
    val_batches = validation_batches(
        list(val_records.offsets),
        in_memory(val_records),
        batch_size=recipe.batch_size,
        protocol=recipe.protocol,
    )
    for epoch in range(len(history), recipe.epochs):
        started = time.perf_counter()
        # What a net draws depends on the epoch alone: a resumed run draws the same.
        mx.random.seed(recipe.seed + epoch)
        batches = training_batches(
            list(train_records.offsets),
            read_train,
            batch_size=recipe.batch_size,
            protocol=recipe.protocol,
            transforms=transforms(recipe),
            seed=recipe.seed,
            epoch=epoch,
        )
        bar = tqdm(batches, f"epoch {epoch + 1}", unit="batch", disable=None)
        loss = train_epoch(recipe, net, trainer, bar, epoch=epoch, ctx=ctx)
        num_trained = len(batches) * recipe.batch_size
        trained = time.perf_counter()
        copy_parameters(net, val_net)
        accuracy = validate(val_net, val_batches, ctx=ctx)
        entry = {
            "epoch": epoch + 1,
            "loss": loss,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "seconds": time.perf_counter() - started,
            "images_per_second": num_trained / (trained - started),
        }
        history.append(entry)
        log.info("%s", json.dumps(entry))
        save_checkpoint(out, recipe, net, trainer, history)
    weights = out / f"{recipe.model}.params"
    with replacing(weights) as part:
        net.save_parameters(str(part))
    write_card(weights, Card(recipe.model, recipe.protocol, recipe.data_set))
    return history


def train_epoch(
    recipe: Recipe,
    net: HybridBlock,
    trainer: gluon.Trainer,
    batches: Collection[Batch],
    *,
    epoch: int,
    ctx: mx.Context,
) -> float:
    """One pass over the batches; returns the mean loss.

    Raises InputError when the loss is not finite.
    """
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    total = 0.0
    for step, (images, labels) in enumerate(batches):
        trainer.set_learning_rate(learning_rate(recipe, epoch + step / len(batches)))
        targets = one_hot(labels, recipe.num_classes, smoothing=recipe.label_smoothing)
        with autograd.record():
            logits = net(mx.nd.array(images, ctx=ctx))
            losses = loss_function(logits, mx.nd.array(targets, ctx=ctx))
        losses.backward()
        trainer.step(recipe.batch_size)
        loss = losses.mean().asscalar()
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}: "
                f"lower the learning rate of {recipe.learning_rate}"
            )
        total += float(loss)
    # The last backward pass updates running statistics, and MXNet does not make those
    # wait who read them.
    mx.nd.waitall()
    return total / len(batches)


def copy_parameters(net: HybridBlock, target: HybridBlock) -> None:
    """Give `target`, a net of the same model, the values of `net`."""
    values = net._collect_params_with_prefix()
    for name, parameter in target._collect_params_with_prefix().items():
        parameter.set_data(values[name].data())


def write_log(out: Path, history: list[dict]) -> None:
    """Write log.jsonl, a line per epoch."""
    with replacing(out / "log.jsonl") as part:
        part.write_text("".join(json.dumps(entry) + "\n" for entry in history))


def last_checkpoint(out: Path) -> Optional[Path]:
    """The folder of the last finished epoch in `out`, if any."""
    return max(out.glob("epoch-[0-9][0-9][0-9][0-9]"), default=None)


def save_checkpoint(
    out: Path,
    recipe: Recipe,
    net: HybridBlock,
    trainer: gluon.Trainer,
    history: list[dict],
) -> None:
    """Write log.jsonl and, under a temporary name, epoch-NNNN; then drop older ones."""
    folder = out / f"epoch-{len(history):04d}"
    unfinished = out / f"{folder.name}.part"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    net.save_parameters(str(unfinished / "net.params"))
    # Trainer.save_states would pickle, and what is pickled runs code when read.
    momenta = {str(i): m for i, m in trainer._updaters[0].states.items()}
    mx.nd.save(str(unfinished / "momenta.params"), momenta)
    state = {"recipe": asdict(recipe), "history": history}
    (unfinished / "state.json").write_text(json.dumps(state, indent=1))
    # The log first: a run that is killed between the two does this epoch once more.
    write_log(out, history)
    unfinished.rename(folder)
    for older in out.glob("epoch-*"):
        if older != folder:
            shutil.rmtree(older)


def restore(
    folder: Path,
    recipe: Recipe,
    net: HybridBlock,
    trainer: gluon.Trainer,
    ctx: mx.Context,
) -> list[dict]:
    """Fill net and trainer from a checkpoint; returns the log of its epochs."""
    state = json.loads((folder / "state.json").read_text())
    wanted = json.loads(json.dumps(asdict(recipe)))
    if state["recipe"] != wanted:
        differing = [k for k in wanted if state["recipe"].get(k) != wanted[k]]
        raise InputError(
            f"{folder} was trained by another recipe (its {', '.join(differing)} "
            "differs): resume with the same one or give another --out"
        )
    net.load_parameters(str(folder / "net.params"), ctx=ctx)
    updater = trainer._updaters[0]
    for index, momentum in mx.nd.load(str(folder / "momenta.params")).items():
        updater.states[int(index)] = momentum.as_in_context(ctx)
        updater.states_synced[int(index)] = True
    return state["history"]


def main(arguments: argparse.Namespace) -> None:
    """Print the last entry of the log."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    history = train(
        RECIPES[arguments.recipe],
        arguments.train_rec,
        arguments.val_rec,
        out=arguments.out,
        resume=arguments.resume,
    )
    print(json.dumps(history[-1]))


if __name__ == "__main__":
    parser = command.Parser(
        prog="python -m gluon_resnet.train",
        description="Train a model from record files.",
    )
    add = parser.add_argument
    add("--recipe", choices=RECIPES, required=True, help="what to train, and how")
    add("--train-rec", type=Path, required=True, help=".rec file to train on")
    add("--val-rec", type=Path, required=True, help=".rec file to validate on")
    add("--out", type=Path, required=True, help="folder for checkpoint, log, weights")
    add("--resume", action="store_true", help="go on from the last finished epoch")
    command.run(main, parser)
