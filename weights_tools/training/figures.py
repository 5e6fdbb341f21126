"""How true pictures are, in numbers; both take pictures (..., height, width, 3) of 0 to 255 and their true pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_EDGE = 20  # grey levels: where the true picture is steeper, it has an edge


def psnr(pictures: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """Fidelity in dB: peak signal to noise ratio over red, green and blue; equal pictures have 138 dB."""
    error = ((pictures.astype(np.float64) - true) ** 2).mean((-1, -2, -3))
    return np.asarray(10 * np.log10(255**2 / np.maximum(1e-9, error)))


def edges(pictures: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    """Sharpness: the sum of gradients where the true picture has edges, divided by the true sum; blur has below 1."""
    steep, true_steep = _gradient(pictures), _gradient(true)
    here = true_steep > _EDGE
    return np.asarray((steep * here).sum((-1, -2)) / np.maximum((true_steep * here).sum((-1, -2)), 1e-9))


def _gradient(pictures: NDArray[Any]) -> NDArray[np.float64]:
    """The length of forward differences of the grey value, 0 across the last row and column."""
    grey = pictures.astype(np.float64).mean(-1)
    down = np.diff(grey, axis=-2, append=grey[..., -1:, :])
    right = np.diff(grey, axis=-1, append=grey[..., -1:])
    return np.asarray(np.hypot(down, right))


FIGURES = {"psnr": psnr, "edges": edges}
