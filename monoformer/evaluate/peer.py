"""A diffusers text-to-image pipeline, asked what our model is asked: the same prompts, seeds and sizes of the result.

Knows diffusers' folders and pictures, nothing of our network. Invariants: weights are safetensors, a folder's own code
is never run, and a picture depends on its prompt and seed, not on its neighbors' seeds.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from PIL import Image as PILImage

from monoformer.document import Document, Image, Text

AT_ONCE = 8
"""Pictures drawn together: a U-Net of full size holds much more for each than our small models do."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another model that draws."""

    network: Any
    """A pipeline of diffusers."""
    folder: Path
    size: tuple[int, int]
    """(height, width) that its pictures are brought to; it draws at its own."""
    options: dict[str, Any]
    """Arguments of every call."""
    device: torch.device

    def generate_images(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[PILImage.Image]:
        """A picture for each prompt, from a generator of its own."""
        drawn: list[PILImage.Image] = []
        for first in range(0, len(prompts), AT_ONCE):
            some = list(prompts[first : first + AT_ONCE])
            random = [torch.Generator("cpu").manual_seed(own) for own in seed[first : first + AT_ONCE]]
            drawn += self.network(prompt=some, generator=random, output_type="pil", **self.options).images
        size = (self.size[1], self.size[0])
        return [picture.convert("RGB").resize(size, PILImage.Resampling.LANCZOS) for picture in drawn]

    def generate(self, documents: Sequence[Document], *, want: Literal["image"], seed: Sequence[int]) -> list[Document]:
        """The same, for documents that are one text each."""
        prompts = [" ".join(part.text for part in each.segments if isinstance(part, Text)) for each in documents]
        drawn = self.generate_images(prompts, seed=seed)
        return [Document((Image.from_pil(picture, target=True),)) for picture in drawn]

    def caption(self, pictures: Sequence[PILImage.Image], *, temperature: float, seed: Sequence[int]) -> NoReturn:
        """It only draws."""
        raise ValueError(f"{self.folder} draws pictures from text and does nothing else; ask for --scenes.tasks draw")

    def answer(
        self, pictures: Sequence[PILImage.Image], questions: Sequence[str], *, temperature: float, seed: Sequence[int]
    ) -> NoReturn:
        """It only draws."""
        self.caption(pictures, temperature=temperature, seed=seed)

    def edit(self, pictures: Sequence[PILImage.Image], instructions: Sequence[str], *, seed: Sequence[int]) -> NoReturn:
        """It only draws."""
        self.caption(pictures, temperature=0.0, seed=seed)

    @property
    def settings(self) -> dict[str, Any]:
        """Steps and guidance of its pictures, its own defaults included."""
        takes = inspect.signature(type(self.network).__call__).parameters
        names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
        return {
            ours: self.options.get(theirs, takes[theirs].default) for ours, theirs in names.items() if theirs in takes
        }

    def files(self) -> list[Path]:
        """What its pictures depend on."""
        kinds = ("*.json", "*.safetensors", "*.txt", "*.model")
        return sorted(file for kind in kinds for file in self.folder.rglob(kind))


def load_peer(
    name: str,
    *,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    guidance: float | None = None,
) -> Peer:
    """The pipeline in a folder; its own steps and guidance where None is given.

    A safety checker is left out: it would have black pictures scored.

    Raises ValueError for a folder that holds none, whose weights are no safetensors, or that does not draw from text.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError:
        raise ValueError("peers need diffusers: pip install 'monoformer[autoencoders]'") from None
    folder = Path(name)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{name} is no diffusers pipeline: it holds no model_index.json")
    try:
        read: Any = DiffusionPipeline.from_pretrained  # untyped
        network = read(folder, use_safetensors=True, local_files_only=True, **_needed(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be loaded as a diffusers pipeline of safetensors: {error}") from None
    takes = inspect.signature(type(network).__call__).parameters
    if not {"prompt", "generator", "output_type"} <= set(takes) or "image" in takes:
        raise ValueError(f"{name} is a {type(network).__name__}, which does not draw from text alone")
    network.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": steps, "guidance_scale": guidance}
    options = {key: value for key, value in given.items() if value is not None}
    if refused := [key for key in options if key not in takes]:
        raise ValueError(f"{name} is a {type(network).__name__}, which takes no {', '.join(refused)}; leave it out")
    return Peer(
        network=network.to(device, dtype),
        folder=folder,
        size=size,
        options=options,
        device=device,
    )


def _needed(folder: Path) -> dict[str, Any]:
    """What a folder asks for: the variant that it holds alone (`NAME.fp16.safetensors`), no safety checker, and no
    text encoder that was left out of it (Stable Diffusion 3 without its T5).
    """
    import diffusers

    weights = [file.name for file in folder.glob("*/*.safetensors")]
    variants = {parts[-2] for name in weights if len(parts := name.split(".")) == 3 and "-of-" not in parts[-2]}
    plain = [name for name in weights if not any(f".{variant}." in name for variant in variants)]
    found: dict[str, Any] = {"variant": sorted(variants)[0]} if variants and not plain else {}
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    names: tuple[str, ...] = () if kind is None else tuple(inspect.signature(kind.__init__).parameters)
    spare = ("text_encoder_", "tokenizer_")
    left_out = [part for part in names if part.startswith(spare) and index.get(part) in (None, [None, None])]
    return {**found, **dict.fromkeys(left_out + ["safety_checker"] * ("safety_checker" in index))}
