"""What reads the pictures that a model only looks at."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A frozen vision encoder for context images; never part of the model's weights, but for its projection."""

    path: str = ""
    """Folder or hub name (OWNER/NAME or OWNER/NAME/SUBFOLDER) of a CLIP, SigLIP or DINOv2 of transformers; empty:
    context images are read as clean patches, like those that the model draws."""
