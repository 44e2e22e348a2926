# SPDX-License-Identifier: Apache-2.0
"""The ranges of a network's values on sample images, for int8."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.contrib.quantization import calib_graph, quantize_graph

from gluon_resnet.data.loader import Batches, permutation, validation_batches
from gluon_resnet.data.records import RecordFile
from gluon_resnet.errors import InputError
from gluon_resnet.inference import split_attention
from gluon_resnet.inference.fold import Arrays
from gluon_resnet.preprocess import Protocol

Ranges = dict[str, tuple[float, float]]
"""The least and the largest value of each output."""
_Observed = Callable[[np.ndarray], dict[str, np.ndarray]]
_BATCH_SIZE = 8  # all layers' outputs are in memory at once
_BINS = 4001  # of a histogram: four or more for each of the 511 steps of a half


def calibrated(
    fused: mx.sym.Symbol,
    arrays: Arrays,
    excluded: Sequence[str],
    batches: Callable[[], Iterable[np.ndarray]],
    calibration: str,
) -> tuple[mx.sym.Symbol, Arrays]:
    """Return the int8 graph, its ranges set, and its arrays.

    fused: the fp32 graph with what MXNet fuses for int8; `arrays` are its own.
    excluded: the names of operators that stay fp32.
    batches: gives an iterator over float32 images (N, 3, H, W), anew at each call.
    calibration: "naive" or "entropy", as `quantize` describes them.
    Raises InputError where an output is not finite.
    """
    arguments = {name: mx.nd.array(array) for name, array in arrays.items()}
    states = {name: arguments.pop(name) for name in fused.list_auxiliary_states()}
    options = {"calib_mode": "naive", "quantized_dtype": "auto", "logger": None}
    # "naive" stands for a collector that takes ranges; which, is decided below.
    graph, _, _, collector = quantize_graph(
        fused,
        arguments,
        states,
        excluded_sym_names=excluded,
        excluded_op_names=[*split_attention.FP32_OPERATORS],
        quantize_mode="full",
        quantize_granularity="channel-wise",
        **options,
    )
    collector.min_max_dict.update(
        ranges_of(fused, arrays, collector.include_layer, batches, calibration)
    )
    graph, arguments, states = calib_graph(
        graph, arguments, states, collector, **options
    )
    # Ranges are known: this fuses the requantizing into the operators.
    graph = graph.get_backend_symbol("MKLDNN_QUANTIZE")
    arrays = {name: a.asnumpy() for name, a in {**arguments, **states}.items()}
    return graph, arrays


def ranges_of(
    symbol: mx.sym.Symbol,
    arrays: Arrays,
    names: Iterable[str],
    batches: Callable[[], Iterable[np.ndarray]],
    calibration: str,
) -> Ranges:
    """Return the ranges of the outputs `names` of a float graph, on sample images.

    The other options and errors are those of `calibrated`.
    """
    inputs = {name: mx.nd.array(array) for name, array in arrays.items()}
    observed = _observed(symbol, inputs, names)
    ranges = _reached(observed, batches())
    if calibration == "entropy":
        ranges = _most_informative(observed, batches(), ranges)
    return ranges


def calibration_batches(protocol: Protocol, rec: Path, images: int) -> Batches:
    """Return `images` of a record file, drawn evenly, prepared by `protocol`.

    Their labels do not matter. Raises InputError for a number below 1 and for a record
    that cannot be read.
    """
    if images < 1:
        raise InputError(f"images is {images}; calibration needs at least 1")
    records = RecordFile.open(rec, num_classes=None)
    keys = permutation(list(records.offsets), seed=0, epoch=0)[:images].tolist()
    return validation_batches(
        keys, records.read, batch_size=_BATCH_SIZE, protocol=protocol
    )


def _observed(
    fused: mx.sym.Symbol, arrays: Mapping[str, mx.nd.NDArray], names: Iterable[str]
) -> _Observed:
    """Return a function from images to {name: output} of the operators `names`."""
    internals = fused.get_internals()
    names = [name for name in internals.list_outputs() if name in names]
    outputs = mx.sym.Group([internals[name] for name in names])
    executor = mx.ndarray.CachedOp(outputs, [("static_alloc", True)])
    inputs = outputs.list_inputs()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        values = {"data": mx.nd.array(images), **arrays}
        found = executor(*(values[name] for name in inputs))
        found = found if isinstance(found, list) else [found]
        return {name: output.asnumpy() for name, output in zip(names, found)}

    return run


def _reached(observed: _Observed, batches: Iterable[np.ndarray]) -> Ranges:
    """Return the range of each output, (0, 1) for all zeros."""
    ranges: Ranges = {}
    for images in batches:
        for name, output in observed(images).items():
            low, high = ranges.get(name, (0, 0))
            # Not min and max: those of Python may lose a NaN.
            limits = np.minimum(low, output.min()), np.maximum(high, output.max())
            ranges[name] = limits
    for name, (low, high) in ranges.items():
        if not high - low < float("inf"):
            raise InputError(f"{name} is not finite on the images of calibration")
    return {name: limits if any(limits) else (0, 1) for name, limits in ranges.items()}


def _most_informative(
    observed: _Observed, batches: Iterable[np.ndarray], ranges: Ranges
) -> Ranges:
    """Narrow each range to the one that MXNet's entropy calibration prefers."""
    limits = {name: max(-low, high) for name, (low, high) in ranges.items()}
    counts = {name: np.zeros(_BINS) for name in ranges}
    for images in batches:
        for name, output in observed(images).items():
            limit = limits[name]
            counts[name] += np.histogram(output, _BINS, (-limit, limit))[0]
    narrowed = {}
    for name, (low, _) in ranges.items():
        edges = np.linspace(-limits[name], limits[name], _BINS + 1)
        threshold, _ = mx.nd.contrib.calibrate_entropy(
            mx.nd.array(counts[name]),
            mx.nd.array(edges),
            # A range without negative values becomes uint8, twice as fine.
            num_quantized_bins=255 if low < 0 else 511,
        )
        threshold = threshold.asscalar()
        narrowed[name] = (-threshold if low < 0 else 0, threshold)
    return narrowed
