"""How each runtime loads a model and runs it. Each function is called in an environment that has its runtime.

A loader takes (stage, model folder or bundle, precision, threads, inputs) and returns a call that gives the output as
an array, and the runtime's version. Everything that a caller would do once is done before the call.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[[], Array]

_OUTPUTS = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "sample"}


def load_mdrt(stage: str, model: Path, precision: str, threads: int, feeds: dict[str, Array]) -> tuple[Call, str]:
    """A session of one component; the format is in the bundle."""
    del precision
    import mdrt

    session = mdrt.Session(model, stage, threads=threads)
    inputs = {name: _narrow(array) for name, array in feeds.items()}
    output = session.outputs[0].name
    return lambda: session.run([output], **inputs)[output], mdrt.__version__


def load_openvino(stage: str, model: Path, precision: str, threads: int, feeds: dict[str, Array]) -> tuple[Call, str]:
    """Latency mode with one stream; what is not int8 in the model is computed in fp32 or bf16."""
    del stage
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if "bf16" in precision else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model / "model.xml", "CPU", options)
    request = compiled.create_infer_request()
    inputs = list(feeds.values())
    return lambda: request.infer(inputs)[0].copy(), openvino.__version__.split("-")[0]


def load_onnxruntime(
    stage: str, model: Path, precision: str, threads: int, feeds: dict[str, Array]
) -> tuple[Call, str]:
    """The CPU provider with all optimisations."""
    del stage, precision
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)[0], onnxruntime.__version__


def load_ncnn(stage: str, model: Path, precision: str, threads: int, feeds: dict[str, Array]) -> tuple[Call, str]:
    """Winograd is on, as by default; bf16 is a storage format here."""
    del stage
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = precision == "bf16"
    for load, name in ((net.load_param, "model.ncnn.param"), (net.load_model, "model.ncnn.bin")):
        if load(str(model / name)) != 0:
            raise RuntimeError(f"ncnn cannot load {name}")
    # Without the batch, which pnnx takes away; a Mat does not own the array it is made of, so it is copied.
    inputs = [ncnn.Mat(_narrow(array[0] if array.ndim > 1 else array)).clone() for array in feeds.values()]

    def call() -> Array:
        extractor = net.create_extractor()
        for index, mat in enumerate(inputs):
            extractor.input(f"in{index}", mat)
        status, output = extractor.extract("out0")
        if status != 0:
            raise RuntimeError(f"ncnn stopped with {status}")
        return np.array(output)

    return call, ncnn.__version__


def load_mnn(stage: str, model: Path, precision: str, threads: int, feeds: dict[str, Array]) -> tuple[Call, str]:
    """High precision: float32 arithmetic, Winograd included."""
    del precision
    import MNN

    config = {"backend": "CPU", "numThread": threads, "precision": "high", "memory": "normal"}
    manager = MNN.nn.create_runtime_manager((config,))
    path = str(model / "model.mnn")
    module = MNN.nn.load_module_from_file(path, list(feeds), [_OUTPUTS[stage]], runtime_manager=manager)
    inputs = []
    for array in map(_narrow, feeds.values()):
        kind = MNN.expr.int if array.dtype.kind == "i" else MNN.expr.float
        variable = MNN.expr.placeholder(list(array.shape), MNN.expr.NCHW, kind)
        variable.write(array)
        inputs.append(variable)

    def call() -> Array:
        output = module.forward(inputs)
        output = output[0] if isinstance(output, (list, tuple)) else output
        return np.array(MNN.expr.convert(output, MNN.expr.NCHW).read() if len(output.shape) == 4 else output.read())

    return call, MNN.version()


def _narrow(array: Array) -> Array:
    """Ids as int32, for those that do not take int64."""
    return np.ascontiguousarray(array, np.int32 if array.dtype.kind == "i" else np.float32)


LOADERS: dict[str, Callable[[str, Path, str, int, dict[str, Array]], tuple[Call, str]]] = {
    "mdrt": load_mdrt,
    "OpenVINO": load_openvino,
    "ONNX Runtime": load_onnxruntime,
    "ncnn": load_ncnn,
    "MNN": load_mnn,
}
