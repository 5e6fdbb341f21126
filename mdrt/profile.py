"""Where the time of a component goes: every step of its plan under a clock, and the sums by layer and by kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from mdrt import _core

_LISTED = 40


def run(
    model: _core.Model, component: str, document: Mapping[str, Any], feeds: Mapping[str, NDArray[Any]], rounds: int
) -> dict[str, Any]:
    """Profiles one component.

    Args:
        model: an open bundle.
        component: one of its components.
        document: that component's graph, as in the bundle's metadata.
        feeds: its inputs, channels last.
        rounds: timed runs after one to warm up.

    Returns:
        `steps` in the plan's order, each with kernel, value, layer, tasks, gmac, seconds (the median of the rounds) and
        gmac_per_second; `layers` and `kernels`: the same summed over steps alike, slowest first.
    """
    formats = {name: dtype for name, dtype, _, _ in model.tensors()}
    steps = []
    for name, node, tasks, macs, seconds in model.profile(component, feeds, rounds):
        kernel, _, value = name.partition(" ")
        median = statistics.median(seconds)
        steps.append(
            {
                "kernel": kernel,
                "value": value,
                "layer": _layer(component, document, node, macs, formats),
                "tasks": tasks,
                "gmac": macs * 1e-9,
                "seconds": median,
                "gmac_per_second": macs * 1e-9 / median if median else 0.0,
            }
        )
    return {
        "steps": steps,
        "layers": _grouped(steps, lambda step: f"{step['kernel']} {step['layer']}"),
        "kernels": _grouped(steps, lambda step: step["kernel"]),
    }


def _layer(component: str, document: Mapping[str, Any], node: int, macs: int, formats: Mapping[str, str]) -> str:
    """The op at the heart of a step with its sizes, such as `conv2d 3x3 320->640 /2, 1024 pixels, fp16`."""
    op = document["nodes"][node]
    found = op["attributes"]
    text: str = op["op"]
    if text not in ("conv2d", "linear"):
        numbers = [f"{key}={value}" for key, value in found.items() if key not in ("eps", "pads")]
        return " ".join([text, *numbers])
    weights = macs
    if text == "conv2d":
        height, width = found["kernel_size"]
        strides = "" if found["stride"] == [1, 1] else f" /{found['stride'][0]}"
        text += f" {height}x{width} {found['in_channels']}->{found['out_channels']}{strides}"
        weights = height * width * found["in_channels"] * found["out_channels"]
    else:
        text += f" {found['in_features']}->{found['out_features']}"
        weights = found["in_features"] * found["out_features"]
    weight = document["weights"][op["inputs"][1] - len(document["inputs"])]
    return f"{text}, {macs // weights} pixels, {formats[f'{component}/{weight}']}"


def _grouped(steps: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]) -> list[dict[str, Any]]:
    """Sums of steps alike, slowest first."""
    groups: dict[str, dict[str, Any]] = {}
    for step in steps:
        group = groups.setdefault(key(step), {"name": key(step), "steps": 0, "gmac": 0.0, "seconds": 0.0})
        group["steps"] += 1
        group["gmac"] += step["gmac"]
        group["seconds"] += step["seconds"]
    total = sum(group["seconds"] for group in groups.values())
    for group in groups.values():
        group["share"] = group["seconds"] / total
        group["gmac_per_second"] = group["gmac"] / group["seconds"]
    return sorted(groups.values(), key=lambda group: -group["seconds"])


def text(found: Mapping[str, Any]) -> str:
    """`run` for people: kernels, then layers, then the slowest steps."""
    total = sum(step["seconds"] for step in found["steps"])
    lines = [f"    {'ms':>9} {'share':>6} {'GMAC':>9} {'GMAC/s':>7} {'steps':>6}  by kernel"]
    lines += [_row(group, total, group["steps"], group["name"]) for group in found["kernels"]]
    lines.append(f"    {'ms':>9} {'share':>6} {'GMAC':>9} {'GMAC/s':>7} {'steps':>6}  by layer")
    lines += [_row(group, total, group["steps"], group["name"]) for group in found["layers"][:_LISTED]]
    slowest = sorted(found["steps"], key=lambda step: -float(step["seconds"]))[:_LISTED]
    lines.append(f"    {'ms':>9} {'share':>6} {'GMAC':>9} {'GMAC/s':>7} {'tasks':>6}  by step")
    lines += [
        _row(step, total, step["tasks"], f"{step['value']}: {step['kernel']} {step['layer']}") for step in slowest
    ]
    return "\n".join(lines)


def _row(entry: Mapping[str, Any], total: float, count: int, name: str) -> str:
    seconds = entry["seconds"]
    return (
        f"    {1e3 * seconds:9.3f} {seconds / total:6.1%} {entry['gmac']:9.3f} {entry['gmac_per_second']:7.1f} "
        f"{count:6d}  {name}"
    )
