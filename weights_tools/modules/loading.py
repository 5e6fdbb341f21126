"""Networks of pipeline directories: made empty, then given their weights."""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from weights_tools.checkpoint import Checkpoint

Network = TypeVar("Network", bound=nn.Module)


def load(
    path: str | os.PathLike[str],
    component: str,
    make: Callable[[Checkpoint], Network],
    own_name: Callable[[str], str | None] = lambda name: name,
) -> Network:
    """A component of a pipeline directory with its weights in float32, ready for inference.

    Args:
        make: the network that the configuration describes.
        own_name: what the network calls a tensor of the checkpoint; None: it has no use for it.

    Raises:
        FileError, ConversionError: the directory or a file is missing or unusable.
        RuntimeError: PyTorch finds missing, surplus or misshapen weights.
    """
    checkpoint = Checkpoint(path)
    with torch.device("meta"):
        model = make(checkpoint)
    files = checkpoint.weights(component)
    names = {name: own for name in files if (own := own_name(name)) is not None}
    model.load_state_dict({own: torch.from_numpy(files.read(name)) for name, own in names.items()}, assign=True)
    return model.eval()
