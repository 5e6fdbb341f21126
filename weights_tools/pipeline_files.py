"""What files of a diffusers pipeline directory are called, and what stands at their heads: for all who write one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_CLASSES = {
    "unet": ["mdrt", "MobileDiffusionUNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


def config_head(component: str) -> dict[str, Any]:
    """The keys of a component's configuration that name its class."""
    if component == "text_encoder":
        return {"model_type": "clip_text_model", "architectures": [_CLASSES[component][1]]}
    return {"_class_name": _CLASSES[component][1], **({"act_fn": "silu"} if component == "vae" else {})}


def block_types(levels: int) -> dict[str, list[str]]:
    """The keys of vae/config.json that say what its levels are made of."""
    return {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}


def weights_stem(component: str) -> str:
    """The name of a component's weights without ending."""
    return "model" if component == "text_encoder" else "diffusion_pytorch_model"


def write_index(folder: Path, components: Iterable[str]) -> None:
    """Writes model_index.json."""
    classes = {name: _CLASSES[name] for name in components}
    write_json(folder / "model_index.json", {"_class_name": "MobileDiffusionPipeline", **classes})


def write_config(folder: Path, component: str, config: Mapping[str, Any]) -> None:
    """Makes a component's folder with its configuration."""
    (folder / component).mkdir()
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    write_json(folder / component / name, config)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document as people read it."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
