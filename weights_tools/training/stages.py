"""The stages of a training by name."""

from __future__ import annotations

import importlib

from weights_tools.training.stage import Context

# Stage -> module with a function `run(context)`, in the order of use.
STAGES = {
    "pack": "emoji",
    "tokenizer": "tokenizer",
    "vae": "vae",
    "latents": "latents",
    "base": "base",
    "guidance": "guidance",
    "progressive": "progressive",
    "ufogen": "ufogen",
    "relu": "base",
    "evaluate": "evaluate",
}
# Those whose batches several processes can share.
SHARED = ("vae", "base", "guidance", "progressive", "ufogen", "relu")


def run_stage(context: Context) -> None:
    """Runs the stage of a context."""
    importlib.import_module(f"weights_tools.training.{STAGES[context.stage]}").run(context)
