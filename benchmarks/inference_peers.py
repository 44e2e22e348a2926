# SPDX-License-Identifier: Apache-2.0
"""PyTorch, ONNX Runtime and OpenVINO: sides of inference.py in their own environment.

Libraries are imported by the sides that use them, for a start costs what it costs.
"""

import inference_side


def torch_eager(folder, images, threads):
    """The network as it is, NCHW."""
    import torch

    net, images = torch_net(folder, threads), torch.from_numpy(images)
    return inferring(lambda: net(images))


def torch_channels_last(folder, images, threads):
    """NHWC memory; the images come as NCHW, as they do for all."""
    import torch

    net = torch_net(folder, threads).to(memory_format=torch.channels_last)
    images = torch.from_numpy(images)
    return inferring(lambda: net(images.to(memory_format=torch.channels_last)))


def torch_bf16(folder, images, threads):
    """NHWC memory, parameters and images cast to bfloat16."""
    import torch

    options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    net, images = torch_net(folder, threads).to(**options), torch.from_numpy(images)
    return inferring(lambda: net(images.to(**options)).float())


def torch_autocast(folder, images, threads):
    """NHWC memory, the operators that autocast chooses in bfloat16."""
    import torch

    net = torch_net(folder, threads).to(memory_format=torch.channels_last)
    images = torch.from_numpy(images)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return net(images.to(memory_format=torch.channels_last)).float()

    return inferring(run)


def torch_compiled(folder, images, threads):
    """Inductor with frozen weights: BN folded, weights in oneDNN's layouts."""
    import torch

    net = torch_net(folder, threads).to(memory_format=torch.channels_last)
    net, images = compiled(folder, net), torch.from_numpy(images)
    return inferring(lambda: net(images.to(memory_format=torch.channels_last)))


def torch_compiled_bf16(folder, images, threads):
    """The same with parameters and images in bfloat16."""
    import torch

    options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    net = compiled(folder, torch_net(folder, threads).to(**options))
    images = torch.from_numpy(images)
    return inferring(lambda: net(images.to(**options)).float())


def compiled(folder, net):
    """torch.compile, its C++ kept beside the model."""
    import os

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(net, dynamic=False)


def torch_net(folder, threads):
    """The network in evaluation mode with the model's weights."""
    import torch
    from inference_torch_nets import torch_net

    torch.set_num_threads(threads)
    return torch_net(folder)


def inferring(run):
    """Without gradients, and to NumPy."""
    import torch

    def infer():
        with torch.inference_mode():
            return run().numpy()

    return infer


def onnxruntime_side(file):
    """ONNX Runtime on one of the converted files."""

    def load(folder, images, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_free_dimension_override_by_name("N", len(images))
        session = onnxruntime.InferenceSession(
            folder / file, options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"images": images})[0]

    return load


def openvino_side(file, precision=None):
    """OpenVINO on one of the converted files, for one stream of lowest latency."""

    def load(folder, images, threads):
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / file)
        model.reshape(images.shape)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
        }
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        request = core.compile_model(model, "CPU", options).create_infer_request()
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))

        def run():
            request.infer()
            return request.get_output_tensor().data.copy()

        return run

    return load


SIDES = {
    "torch-eager": torch_eager,
    "torch-channels-last": torch_channels_last,
    "torch-bf16": torch_bf16,
    "torch-autocast": torch_autocast,
    "torch-compiled": torch_compiled,
    "torch-compiled-bf16": torch_compiled_bf16,
    "onnxruntime": onnxruntime_side("model.onnx"),
    "onnxruntime-int8": onnxruntime_side("int8.onnx"),
    "openvino": openvino_side("model.onnx", "f32"),
    "openvino-bf16": openvino_side("model.onnx", "bf16"),
    "openvino-int8": openvino_side("int8.xml"),
}

if __name__ == "__main__":
    inference_side.main(SIDES)
