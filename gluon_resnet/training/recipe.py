# SPDX-License-Identifier: Apache-2.0
"""`Recipe`: everything that decides the outcome of a training but the images.

The recipes there are: recipes.py. Here is what a recipe means and what can be done
with one, all of it pure: a training calls these functions and adds net and devices.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union, get_args, get_type_hints

import numpy as np

from gluon_resnet.data.augment import cutmix, mixup
from gluon_resnet.data.loader import Transform
from gluon_resnet.errors import InputError
from gluon_resnet.models import model_spec
from gluon_resnet.nearest import nearest
from gluon_resnet.postprocess import load_class_names
from gluon_resnet.preprocess import Protocol
from gluon_resnet.training.schedules import cosine, linear_warmup

Schedule = Callable[[float, int, float], float]
Transforms = Callable[[int], Sequence[Transform]]


def no_transforms(size: int) -> Sequence[Transform]:
    """Leave images as they are."""
    return ()


@dataclass(frozen=True)
class Recipe:
    """How to train one model. Parts (transforms, schedule) are functions, bound.

    Raises InputError for a value outside its range.
    """

    model: str
    protocol: Protocol
    """How images are prepared for validation; training takes mean and std of it."""
    source: str
    """Whom it follows (paper, configuration, log), and why where they differ."""
    num_classes: int = 1000
    data_set: Optional[str] = None
    """Whose class names the weights answer with: one that `load_class_names` knows, or
    a file of them, a line each, as imagenet_prep.folder writes classes.txt."""
    published_top1: Optional[float] = None
    """Percent, as the source says; None: not published."""
    initial_weights: Optional[str] = None
    """MODEL.TAG or a file: the weights that a fine-tuning starts from."""

    # Images
    transforms: Transforms = no_transforms
    """(side of training images in pixels) -> what is done to each, in this order, with
    the functions of augment.py."""
    train_size: Optional[int] = None
    """Pixels of training images where they are not those of `protocol`."""
    repeats: int = 1
    """Copies of an image in a batch: repeated augmentation."""
    mixup: float = 0.0
    """Alpha of mixup; with cutmix, each batch gets one of them, drawn evenly."""
    cutmix: float = 0.0
    """Alpha of cutmix."""

    # Loss
    loss: str = "cross_entropy"
    """"cross_entropy" or "binary" (cross entropy, summed over the classes)."""
    label_smoothing: float = 0.0

    # Steps
    epochs: int = 100
    batch_size: int = 256
    """Images in a step, all devices and accumulated passes together."""
    accumulate: int = 1
    """Passes that a batch is split into, where memory is short."""
    learning_rate: float = 0.1
    """The peak, for `batch_size`."""
    lr_scaling: str = "linear"
    """How `learning_rate` follows another batch size: "linear" or "none"."""
    schedule: Schedule = cosine
    """(epochs done, epochs, warm-up epochs) -> share of the peak (schedules.py)."""
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    """Share of the peak that the linear warm-up starts from."""
    optimizer: str = "sgd"
    """"sgd", "nag" or "lamb"."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    clip_norm: Optional[float] = None
    """Largest global norm of a step's gradient."""

    # Network
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_block: float = 0.0
    """Probability after the last epoch; it rises linearly."""
    last_gamma: bool = False
    sync_bn: bool = False
    """BatchNorm over all devices together."""
    ema: float = 0.0
    """Decay of the average of the parameters that is validated and saved; 0: none."""
    precision: str = "fp32"
    """"fp32", "bf16" (CPU), "fp16" with loss scaling (GPU) or "mixed": what the device
    has of these (precision.py)."""
    seed: int = 0

    def __repr__(self) -> str:
        return (
            f"<Recipe {self.model}: {self.epochs} epochs of batches of "
            f"{self.batch_size}, {self.optimizer} at {self.learning_rate:g}, "
            f"{self.num_classes} classes, {self.protocol.size} pixels, "
            f"{self.precision}>"
        )

    def __post_init__(self) -> None:
        model_spec(self.model)
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not holds(value):
                raise InputError(f"{name} is {value!r}; it must be {rule}")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; it "
                f"must be less: set warmup_epochs={self.epochs // 10}, too, or raise "
                "epochs"
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate is {self.accumulate}; it must divide the batch size of "
                f"{self.batch_size}"
            )
        names = class_names(self)
        if names is not None and len(names) != self.num_classes:
            raise InputError(
                f"num_classes is {self.num_classes}, and data_set {self.data_set} has "
                f"{len(names)} classes: set the one that is right, or data_set=none"
            )
        size = training_pixels(self).size
        if self.drop_block and size < _DROP_BLOCK_SIZE:
            raise InputError(
                f"drop_block is {self.drop_block} on training images of {size} pixels; "
                f"it needs {_DROP_BLOCK_SIZE}: raise train_size or set drop_block to 0"
            )


def _whole(lowest: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: isinstance(value, int) and value >= lowest,
        f"a whole number of at least {lowest}",
    )


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return choices.__contains__, f"{', '.join(choices[:-1])} or {choices[-1]}"


_NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
_POSITIVE = (lambda value: 0 < value < math.inf, "a finite number above 0")
_SHARE = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
# Field -> what holds for its values, and that in words.
_RULES = {
    **dict.fromkeys(
        ("num_classes", "train_size", "repeats", "epochs", "batch_size", "accumulate"),
        _whole(1),
    ),
    "seed": _whole(0),
    **dict.fromkeys(
        ("mixup", "cutmix", "warmup_epochs", "weight_decay"), _NOT_NEGATIVE
    ),
    **dict.fromkeys(("learning_rate", "clip_norm"), _POSITIVE),
    **dict.fromkeys(
        ("label_smoothing", "momentum", "dropout", "drop_path", "drop_block", "ema"),
        _SHARE,
    ),
    "warmup_from": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "loss": _one_of("cross_entropy", "binary"),
    "lr_scaling": _one_of("linear", "none"),
    "optimizer": _one_of("sgd", "nag", "lamb"),
    "precision": _one_of("fp32", "bf16", "fp16", "mixed"),
}
_OPTIONAL = ("train_size", "clip_norm")
# From here on the last stage's maps are 3 x 3, the least that holds a dropped block.
_DROP_BLOCK_SIZE = 65

# What --set may change: fields with a plain value that a training follows.
_SETTABLE = {
    name: hint
    for name, hint in get_type_hints(Recipe).items()
    if name not in ("protocol", "transforms", "schedule", "source", "published_top1")
}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def class_names(recipe: Recipe) -> Optional[tuple[str, ...]]:
    """Return the names of the recipe's classes by label, None if they have none.

    Raises InputError for a data set that is neither known nor a file of names.
    """
    data_set = recipe.data_set
    if data_set is None:
        return None
    path = Path(data_set)
    try:
        return load_class_names(data_set)
    except InputError as error:
        if not path.is_file():
            raise InputError(
                f"data_set is {data_set!r}: {error}, a file of class names, a line "
                "each, or none"
            ) from None
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except ValueError:
        raise InputError(
            f"data_set {data_set} is no text in UTF-8: give a file of class names, a "
            "line each"
        ) from None


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then `recipe.schedule`."""
    epoch, batch = divmod(step, steps_per_epoch)
    done = epoch + batch / steps_per_epoch
    if done < recipe.warmup_epochs:
        share = linear_warmup(done, recipe.warmup_epochs, start=recipe.warmup_from)
    else:
        share = recipe.schedule(done, recipe.epochs, recipe.warmup_epochs)
    return recipe.learning_rate * share


def drop_block_at(recipe: Recipe, epoch: int) -> float:
    """Return the DropBlock probability of an epoch, counted from 0: a linear rise."""
    return recipe.drop_block * (epoch + 1) / recipe.epochs


def training_pixels(recipe: Recipe) -> Protocol:
    """Return how training images are prepared after the transforms: nothing is cut."""
    size = recipe.train_size or recipe.protocol.size
    return replace(recipe.protocol, size=size, crop_pct=1)


def training_transforms(recipe: Recipe) -> tuple[Transform, ...]:
    """Return what is done to each training image, in this order."""
    return tuple(recipe.transforms(training_pixels(recipe).size))


def mix(
    recipe: Recipe,
    images: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Do the recipe's mixup or cutmix, if any, to a batch; see augment.py."""
    mixes = [
        partial(function, alpha=alpha)
        for function, alpha in ((mixup, recipe.mixup), (cutmix, recipe.cutmix))
        if alpha
    ]
    if not mixes:
        return images, targets
    return mixes[rng.integers(len(mixes))](images, targets, rng)


def for_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe for another batch size, the rate scaled by its own rule.

    "linear" is arXiv:1706.02677, section 2.1.
    """
    return _rescaled(replace(recipe, batch_size=batch_size), recipe.batch_size)


def _rescaled(recipe: Recipe, former_size: int) -> Recipe:
    if recipe.lr_scaling == "none":
        return recipe
    rate = recipe.learning_rate * (recipe.batch_size / former_size)
    return replace(recipe, learning_rate=rate)


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with fields set as in ["epochs=10", "train_size=none"].

    Another batch_size scales the learning rate (`for_batch_size`) unless that is set,
    too; another num_classes leaves the classes without names unless data_set is set.
    Raises InputError for a field that there is not or that holds no plain value,
    one set twice, and a value that cannot be read or breaks a rule.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"{setting!r} is no setting; write it as key=value")
        if name not in _SETTABLE:
            raise InputError(
                f"unknown key {name!r} in {setting!r}; {nearest(name, _SETTABLE)}; "
                f"there are {', '.join(_SETTABLE)}"
            )
        if name in values:
            raise InputError(f"{name} is set twice, again by {setting!r}; set it once")
        values[name] = _read(setting, _SETTABLE[name], text)
    if values.get("num_classes", recipe.num_classes) != recipe.num_classes:
        values.setdefault("data_set", None)
    changed = replace(recipe, **values)
    if "learning_rate" in values:
        return changed
    return _rescaled(changed, recipe.batch_size)


def _read(setting: str, hint: Any, text: str) -> Union[int, float, bool, str, None]:
    """The value of a setting, of the type that the field's annotation says."""
    kind, *none = get_args(hint) or (hint,)
    if none and text.lower() == "none":
        return None
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise InputError(
            f"{setting!r} cannot be read; give {_KINDS[kind]}{' or none' * bool(none)}"
        ) from None


def smoke(recipe: Recipe) -> Recipe:
    """The same training in seconds, to see that it runs; its outcome is worth nothing.

    Two epochs, at most one of them warm-up, batches of 8, images of at most 64 pixels
    (72 with DropBlock), fresh weights. All else, the rate by the recipe's rule
    included, is as it was.
    """
    largest = 72 if recipe.drop_block else 64
    small = replace(recipe.protocol, size=min(recipe.protocol.size, largest))
    return replace(
        for_batch_size(replace(recipe, accumulate=1), 8),
        source=f"smoke run of: {recipe.source}",
        published_top1=None,
        protocol=small,
        train_size=recipe.train_size and min(recipe.train_size, largest),
        initial_weights=None,
        epochs=2,
        warmup_epochs=min(recipe.warmup_epochs, 1),
        accumulate=min(recipe.accumulate, 2),
    )


def described(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it; a function as the call that would bind it."""

    def text(function: Any) -> str:
        keywords = getattr(function, "keywords", {})
        bound = ", ".join(f"{name}={value!r}" for name, value in keywords.items())
        name = getattr(function, "func", function).__name__
        return f"{name}({bound})" if bound else name

    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    values["protocol"] = asdict(recipe.protocol)
    values["schedule"] = text(recipe.schedule)
    values["transforms"] = [text(each) for each in training_transforms(recipe)]
    return json.loads(json.dumps(values))
