"""Converts a diffusers pipeline directory into a bundle, tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mdrt
from mdrt.bundle import Component, write_bundle
from mdrt.errors import ConversionError, InvalidArgumentError, UnsupportedError
from mdrt.graph import Graph
from mdrt.schedulers import make_rows, scheduler_name
from weights_tools.checkpoint import Checkpoint, CheckpointWeights
from weights_tools.text_encoder import TextEncoderConfig, build_text_encoder
from weights_tools.unet import UNetConfig, build_unet
from weights_tools.vae import VaeConfig, build_vae_decoder, build_vae_encoder
from weights_tools.vocabulary import Vocabulary, read_vocabulary

_STEPS = (20, 1, 2, 4, 8)
_GUIDANCE_SCALE = 7.5
_MULTIPLE = 8
