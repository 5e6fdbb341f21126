"""Times components of a bundle against ONNX Runtime on the same graph, interleaved, and prints medians and ratios.

    mdrt new --preset mobilediffusion -o model
    mdrt convert model -o model.mdrt --format fp32
    python benchmarks/export_onnx.py model onnx
    python benchmarks/compare_onnxruntime.py model.mdrt onnx --threads 2

Needs onnxruntime. A ratio below 1 means that mdrt is faster. Both sides get the same random inputs, and their outputs
are compared, so that no ratio is printed for two different computations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mdrt

COMPONENTS = ("text_encoder", "unet", "vae_decoder")


def random_feeds(session: mdrt.Session, latent_size: int) -> dict[str, NDArray[np.generic]]:
    """One picture's inputs: (1, channels, latent_size, latent_size) latents, full-length text."""
    random = np.random.default_rng(1)
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in session.inputs:
        if value.name == "timestep":
            feeds[value.name] = np.array([501.0], np.float32)
        elif value.name == "input_ids":
            feeds[value.name] = random.integers(0, 1000, (1, 77)).astype(np.int32)
        elif value.name == "encoder_hidden_states":
            feeds[value.name] = random.standard_normal((1, 77, value.shape[-1]), np.float32)
        else:
            feeds[value.name] = random.standard_normal((1, value.shape[1], latent_size, latent_size), np.float32)
    return feeds


def onnx_runner(path: Path, feeds: dict[str, NDArray[np.generic]], threads: int) -> Callable[[], NDArray[np.float32]]:
    """A call of ONNX Runtime with all optimisations; inputs by name, ids as int64 where the model wants them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wide = {value.name for value in session.get_inputs() if value.type == "tensor(int64)"}
    cast = {name: value.astype(np.int64) if name in wide else value for name, value in feeds.items()}
    return lambda: session.run(None, cast)[0]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("onnx", type=Path, help="directory of <component>.onnx")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--latent-size", type=int, default=64)
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=COMPONENTS)
    arguments = parser.parse_args()
    for component in arguments.components:
        session = mdrt.Session(arguments.bundle, component, threads=arguments.threads)
        feeds = random_feeds(session, arguments.latent_size)
        theirs = onnx_runner(arguments.onnx / f"{component}.onnx", feeds, arguments.threads)
        name = session.outputs[0].name

        def ours(session: mdrt.Session = session, feeds: dict = feeds, name: str = name) -> NDArray[np.float32]:  # type: ignore[type-arg]
            return session.run([name], **feeds)[name]

        expected, result = theirs(), ours()
        error = float(np.sqrt(np.mean((result - expected) ** 2) / np.mean(expected**2)))
        times = [(seconds(ours), seconds(theirs)) for _ in range(arguments.rounds)]
        ratios = [a / b for a, b in times]
        print(
            f"{component:13s} mdrt {statistics.median(a for a, _ in times):.3f} s, "
            f"ONNX Runtime {statistics.median(b for _, b in times):.3f} s, "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}), relative RMSE {error:.1e}"
        )


if __name__ == "__main__":
    main()
