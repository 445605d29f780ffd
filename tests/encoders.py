"""Tiny vision encoders of every class that transformers has for us, with random weights, in folders as on the hub."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.latents import randomize

SIDE, PATCH, WIDTH, GRID = 12, 4, 16, (3, 3)

KINDS = ("clip", "clip-vision", "siglip", "siglip-vision", "dino", "dinov2", "dinov2-registers", "dinov3")
"""`clip` and `siglip` are whole models, text half and all, as most are released."""

SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
TEXT: dict[str, Any] = {**{k: v for k, v in SHAPE.items() if "_size" not in k}, "hidden_size": 16, "vocab_size": 99}

STATISTICS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3}
CROPS = {"do_center_crop": True, "do_normalize": True, "do_resize": True, **STATISTICS}
PREPARATIONS: dict[str, dict[str, Any]] = {
    "clip": {**CROPS, "size": SIDE, "crop_size": SIDE, "feature_extractor_type": "CLIPFeatureExtractor"},
    "clip-vision": {
        **CROPS, "size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE},
        "image_processor_type": "CLIPImageProcessor", "rescale_factor": 0.00392156862745098,
    },
    "siglip": {
        **STATISTICS, "size": {"height": SIDE, "width": SIDE}, "image_processor_type": "SiglipImageProcessor",
    },
    "dinov2": {
        **CROPS, "size": {"shortest_edge": SIDE + 2}, "crop_size": {"height": SIDE, "width": SIDE},
        "image_processor_type": "BitImageProcessor",
    },
}  # fmt: skip
"""`preprocessor_config.json` as it was written of old (`clip`) and is today."""
PREPARATIONS |= {"siglip-vision": PREPARATIONS["siglip"] | {"resample": 2}, "dinov2-registers": PREPARATIONS["dinov2"]}
PREPARATIONS["dino"] = {**STATISTICS, "size": SIDE, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor"}
PREPARATIONS["dinov3"] = {
    **STATISTICS, "size": {"height": SIDE, "width": SIDE}, "do_center_crop": None, "crop_size": None, "resample": 2,
    "image_processor_type": "DINOv3ViTImageProcessor",
}  # fmt: skip


def network(kind: str, *, seed: int = 0) -> Any:
    """The module: patches of 4 pixels, width 16, two layers; DINOv2's own pictures are larger than what it is shown."""
    with torch.random.fork_rng(devices=[]):
        return randomize(_described(kind), seed)


def _described(kind: str) -> Any:
    import transformers as tf

    larger = {**SHAPE, "image_size": SIDE + 8}
    match kind:
        case "clip":
            return tf.CLIPModel(tf.CLIPConfig(vision_config=SHAPE, text_config=TEXT))
        case "clip-vision":
            return tf.CLIPVisionModel(tf.CLIPVisionConfig(**SHAPE))
        case "siglip":
            return tf.SiglipModel(tf.SiglipConfig(vision_config=SHAPE, text_config=TEXT))
        case "siglip-vision":
            return tf.SiglipVisionModel(tf.SiglipVisionConfig(**SHAPE))
        case "dino":
            return tf.ViTModel(tf.ViTConfig(**SHAPE), add_pooling_layer=False)
        case "dinov3":
            return tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**larger, num_register_tokens=2))
        case "dinov2":
            return tf.Dinov2Model(tf.Dinov2Config(**larger, mlp_ratio=2))
        case _:
            return tf.Dinov2WithRegistersModel(
                tf.Dinov2WithRegistersConfig(**larger, num_register_tokens=3, mlp_ratio=2)
            )


def save(kind: str, folder: Path, *, seed: int = 0) -> str:
    """A folder with such an encoder; its path."""
    network(kind, seed=seed).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARATIONS[kind]), encoding="utf-8")
    return str(folder)
