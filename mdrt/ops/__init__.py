"""The NumPy reference of every op of csrc/ops.def, for tests and for the interpreter's backend "reference"."""

from __future__ import annotations

from mdrt.ops import attention, conv, elementwise, embedding, linear, norm, resize
from mdrt.ops.reference import EPSILON, Case, Reference

REFERENCES: dict[str, Reference] = {
    **conv.REFERENCES,
    **linear.REFERENCES,
    **attention.REFERENCES,
    **norm.REFERENCES,
    **elementwise.REFERENCES,
    **resize.REFERENCES,
    **embedding.REFERENCES,
}

__all__ = ["EPSILON", "REFERENCES", "Case", "Reference"]
