# SPDX-License-Identifier: Apache-2.0
"""Convert a model of inference.py for ONNX Runtime and OpenVINO, in fp32 and int8.

    python benchmarks/inference_convert.py FOLDER

What the folder has already is kept. The int8 models are calibrated on the folder's
calibration.npy. BN is folded when the network is exported.
"""

import sys
import warnings
from pathlib import Path

import numpy as np


def to_onnx(folder, path):
    """The PyTorch network as one graph for any batch size."""
    import torch
    from inference_torch_nets import torch_net

    images = torch.from_numpy(np.load(folder / "images.npy"))
    with warnings.catch_warnings():
        # It is the exporter whose graphs need no further clean-up.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            torch_net(folder),
            images[:1],
            path,
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
        )


def to_onnxruntime_int8(folder, path):
    """Static QDQ quantization as ONNX Runtime recommends for VNNI."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(calibration_batches(folder))

        def get_next(self):
            images = next(self.batches, None)
            return None if images is None else {"images": images}

    prepared = path.with_name(".prepared.onnx")
    quant_pre_process(folder / "model.onnx", prepared)
    quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    prepared.unlink()


def to_openvino_int8(folder, path):
    """NNCF's post-training quantization with its defaults."""
    import nncf
    import openvino

    batches = calibration_batches(folder)
    model = nncf.quantize(
        openvino.Core().read_model(folder / "model.onnx"),
        nncf.Dataset(batches),
        subset_size=len(batches),
    )
    openvino.save_model(model, path, compress_to_fp16=False)


def calibration_batches(folder):
    """The images one by one, each (1, 3, H, W)."""
    images = np.load(folder / "calibration.npy")
    return np.split(images, len(images))


CONVERSIONS = {
    "model.onnx": to_onnx,
    "int8.onnx": to_onnxruntime_int8,
    "int8.xml": to_openvino_int8,
}


def main(folder):
    """Make what is missing; a file gets its name when it is whole."""
    for name, convert in CONVERSIONS.items():
        path = folder / name
        if not path.exists():
            part = path.with_stem(f"{path.stem}-part")
            convert(folder, part)
            if path.suffix == ".xml":
                part.with_suffix(".bin").replace(path.with_suffix(".bin"))
            part.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
