"""Writes mdrt/layers.txt: the layers of the canonical models, fused as the planner fuses them, and how often each occurs.

    python benchmarks/list_layers.py > mdrt/layers.txt

A test compares the file with what this prints.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mdrt.graph import Graph, Node
from mdrt.layers import MODELS, Layer
from weights_tools.new import PRESETS, canonical_graphs

SIZES = {"batch": 1, "height": 64, "width": 64, "latent_height": 64, "latent_width": 64, "sequence_length": 77}
LEAST_SHARE = 0.004  # of a model's multiply-adds; lighter layers are left out
