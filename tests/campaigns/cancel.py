"""Cancels a picture at random moments, from another thread, and reports how long each cancel took to act.

    python tests/campaigns/cancel.py model.mdrt --count 50 --steps 2

Afterwards the same pipeline must draw the same bytes as before. Exit status 1 when it does not, or when the 95th
percentile exceeds the limit.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time

import numpy as np

import mdrt


def cancel_once(pipe: mdrt.Pipeline, prompt: str, steps: int, delay: float) -> float | None:
    """Seconds from the cancel to the exception; None when the picture was finished first."""
    cancelled_at: list[float] = []

    def cancel() -> None:
        cancelled_at.append(time.perf_counter())
        pipe.cancel()

    timer = threading.Timer(delay, cancel)
    timer.start()
    try:
        pipe(prompt, num_inference_steps=steps, seed=7)
        return None
    except mdrt.Cancelled:
        return time.perf_counter() - cancelled_at[0]
    finally:
        timer.cancel()
        timer.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.25, help="seconds, of the 95th percentile")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    prompt = "tiger on a blue background"
    pipe = mdrt.Pipeline(arguments.bundle)
    start = time.perf_counter()
    before = np.asarray(pipe(prompt, num_inference_steps=arguments.steps, seed=7))
    whole = time.perf_counter() - start
    latencies: list[float] = []
    while len(latencies) < arguments.count:
        latency = cancel_once(pipe, prompt, arguments.steps, random.uniform(0, whole))
        if latency is not None:
            latencies.append(latency)
    same = bool(np.array_equal(before, np.asarray(pipe(prompt, num_inference_steps=arguments.steps, seed=7))))
    p95 = float(np.percentile(latencies, 95))
    print(
        f"cancel: {len(latencies)} cancels of a {whole:.2f} s picture, seed {arguments.seed}: median "
        f"{np.median(latencies) * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms, worst {max(latencies) * 1e3:.0f} ms; "
        f"next picture {'the same bytes' if same else 'DIFFERENT'}"
    )
    return 0 if same and p95 <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
