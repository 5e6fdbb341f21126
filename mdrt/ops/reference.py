"""What belongs to one op: its reference, how exact a kernel must be, and the shapes to test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Case:
    """Shapes of the inputs in the order of the op's row (weights in checkpoint layout), and all attributes."""

    shapes: tuple[tuple[int, ...], ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """One op in NumPy.

    `function` takes arrays and the attributes named in `uses` and computes in float64. A float32 kernel may differ from
    it by `tolerance` epsilons of float32 (2**-23) times `magnitude`, which is by default the largest result.
    """

    function: Callable[..., Array]
    tolerance: float
    uses: tuple[str, ...] = ()
    magnitude: Callable[..., Array] | None = None
    cases: Sequence[Case] = ()

    def __call__(self, inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array:
        """The result, float64, for inputs and attributes in the order and spelling of the op's row."""
        return self.function(*inputs, **{name: attributes[name] for name in self.uses})

    def bound(self, inputs: Sequence[Array], attributes: Mapping[str, Any]) -> Array:
        """The greatest difference that a float32 kernel may show, for every element of the result (or one number)."""
        if self.magnitude is None:
            scale = np.max(np.abs(self(inputs, attributes)))
        else:
            scale = self.magnitude(*inputs, **{name: attributes[name] for name in self.uses})
        return np.asarray(scale * self.tolerance * EPSILON)
