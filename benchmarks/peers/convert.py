"""Makes one model of a peer, in the environment that it needs.

    python -m peers.convert RECIPE STAGE CHECKPOINT MODELS FOLDER

CHECKPOINT is a diffusers pipeline directory, MODELS the folder of what other recipes made, FOLDER where the files go.
Quantisation uses random inputs: speed does not depend on the values, and the checkpoint is random as well.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]

REFERENCE = "reference.npz"
"""Beside the ONNX model: the inputs by name, and PyTorch's output as `expected`."""


def read_reference(folder: Path) -> tuple[Feeds, NDArray[np.float32]]:
    """The inputs and PyTorch's output for one picture."""
    with np.load(folder / REFERENCE) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    return feeds, feeds.pop("expected")


def calibration(feeds: Feeds, timesteps: tuple[float, ...]) -> Iterator[Feeds]:
    """`feeds`, and others of the same shapes: one per timestep."""
    yield feeds
    random = np.random.default_rng(0)
    for timestep in timesteps:
        yield {name: _another(name, array, timestep, random) for name, array in feeds.items()}


def _another(name: str, array: NDArray[Any], timestep: float, random: np.random.Generator) -> NDArray[Any]:
    if name == "timestep":
        return np.array([timestep], np.float32)
    return array if array.dtype.kind == "i" else random.standard_normal(array.shape, np.float32)


def onnx_fp32(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.onnx and PyTorch's inputs and output."""
    del models
    import torch
    from export_onnx import COMPONENTS, export

    torch.manual_seed(0)
    network = COMPONENTS[stage](checkpoint, 64)
    export(network, folder / "model.onnx")
    with torch.no_grad():
        expected = network.module(*network.inputs.values())
    feeds = {name: tensor.numpy() for name, tensor in network.inputs.items()}
    np.savez(folder / REFERENCE, expected=expected.numpy(), **feeds)


def openvino_fp32(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.xml, converted from PyTorch, which keeps attention in one piece."""
    del models
    import openvino
    import torch
    from export_onnx import COMPONENTS

    network = COMPONENTS[stage](checkpoint, 64)
    example = tuple(network.inputs.values())
    with torch.no_grad():  # else attention is written out, as for training
        model = openvino.convert_model(network.module, example_input=example, input=[tuple(x.shape) for x in example])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def openvino_int8(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.xml, quantised after training by NNCF: symmetric weights, activations as their ranges ask for."""
    del checkpoint
    import nncf
    import openvino

    feeds, _ = read_reference(models / stage / "onnx-fp32")
    samples = [list(sample.values()) for sample in calibration(feeds, (900.0, 100.0))]
    model = nncf.quantize(
        openvino.Core().read_model(models / stage / "openvino-fp32" / "model.xml"),
        nncf.Dataset(samples, lambda sample: sample),
        subset_size=len(samples),
        model_type=None if stage == "vae_decoder" else nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
    )
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def ncnn_fp32(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.ncnn.param and model.ncnn.bin, through pnnx."""
    del models
    import pnnx
    import torch
    from export_onnx import COMPONENTS

    network = COMPONENTS[stage](checkpoint, 64)
    try:
        with torch.no_grad():  # as above
            pnnx.export(network.module, str(folder / "model.pt"), tuple(network.inputs.values()), fp16=False)
    finally:
        # pnnx cannot load some of the Python files that it writes beside; the model is complete then.
        for path in folder.glob("model*"):
            if path.name not in {"model.ncnn.param", "model.ncnn.bin"}:
                path.unlink()


def mnn_fp32(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.mnn, converted from ONNX."""
    del checkpoint
    source = models / stage / "onnx-fp32" / "model.onnx"
    converter = Path(sys.executable).parent / "mnnconvert"
    arguments = ["-f", "ONNX", "--modelFile", source, "--MNNModel", folder / "model.mnn", "--bizCode", "mdrt"]
    subprocess.run([converter, *arguments], check=True)


def onnx_int8_qdq(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.onnx, static: weights per channel, activations unsigned per tensor by their minimum and maximum."""
    del checkpoint
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives the samples one by one."""

        def __init__(self, samples: Iterator[Feeds]) -> None:
            self.samples = samples

        def get_next(self) -> Feeds | None:
            return next(self.samples, None)

    feeds, _ = read_reference(models / stage / "onnx-fp32")
    quantization.quantize_static(
        _prepared(stage, models, folder),
        folder / "model.onnx",
        Reader(calibration(feeds, (900.0,))),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True},
    )
    (folder / "prepared.onnx").unlink()


def onnx_int8_dynamic(stage: str, checkpoint: Path, models: Path, folder: Path) -> None:
    """model.onnx, matrix products only: weights per channel, activations by their range at run time."""
    del checkpoint
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        _prepared(stage, models, folder),
        folder / "model.onnx",
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    (folder / "prepared.onnx").unlink()


def _prepared(stage: str, models: Path, folder: Path) -> Path:
    """The fp32 model as ONNX Runtime wants it before quantisation; the UNet is too large for its optimiser."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / "prepared.onnx"
    source = models / stage / "onnx-fp32" / "model.onnx"
    quant_pre_process(source, path, skip_symbolic_shape=True, skip_optimization=stage == "unet")
    return path


RECIPES: dict[str, Callable[[str, Path, Path, Path], None]] = {
    "onnx-fp32": onnx_fp32,
    "onnx-int8-qdq": onnx_int8_qdq,
    "onnx-int8-dynamic": onnx_int8_dynamic,
    "openvino-fp32": openvino_fp32,
    "openvino-int8": openvino_int8,
    "ncnn-fp32": ncnn_fp32,
    "mnn-fp32": mnn_fp32,
}


def main() -> None:
    recipe, stage, checkpoint, models, folder = sys.argv[1:]
    RECIPES[recipe](stage, Path(checkpoint), Path(models), Path(folder))


if __name__ == "__main__":
    main()
