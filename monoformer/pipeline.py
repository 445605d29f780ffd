"""The friendly front: load a folder, then write, draw, caption, edit and chat.

    pipeline = Pipeline.from_pretrained("models/mini")
    pipeline.generate_images("a large red circle on a white background")[0].save("circle.png")

Lists in, lists out: every method takes one item or a list and returns a list; item i has seed `seed + i` unless a list
of seeds is given. What an item makes does not depend on the others (up to the last bits of matrix products).
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage

from monoformer.autoencoder import Autoencoder, build_autoencoder
from monoformer.config.generate import GenerateConfig
from monoformer.config.spelling import hint
from monoformer.device import choose, has_bf16_units
from monoformer.document import Document, Image, Segment, Text
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request, Wanted
from monoformer.pretrained import Pretrained, find_folder, load_pretrained, save_pretrained
from monoformer.vision import VisionEncoder, build_vision

Size: TypeAlias = tuple[int, int]
Picture: TypeAlias = PILImage.Image


class Pipeline:
    """One model, ready to use."""

    def __init__(
        self,
        pretrained: Pretrained,
        *,
        autoencoder: Autoencoder | None = None,
        vision: VisionEncoder | None = None,
        slots: int = 64,
        card: str = "",
    ) -> None:
        """`slots` contexts are served at once; more items wait. `autoencoder`, `vision` None: the model's own."""
        self.pretrained = pretrained
        weight = pretrained.model.tokens.weight
        if autoencoder is None:
            autoencoder = build_autoencoder(pretrained.autoencoder, device=weight.device, dtype=weight.dtype)
        if vision is None:
            vision = build_vision(pretrained.vision, device=weight.device, dtype=weight.dtype)
        self.engine = Engine(pretrained, autoencoder, vision=vision, slots=slots)
        self.card = card

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        slots: int = 64,
        autoencoder: Autoencoder | None = None,
        vision: VisionEncoder | None = None,
    ) -> "Pipeline":
        """Load a model folder, or a model of that name from the Hugging Face hub.

        `dtype` None: bf16 where the device has matrix units for it, else fp32. `autoencoder`, `vision` None: those
        that the folder holds or names. Raises ValueError when it is no model.
        """
        where = choose(device)
        if dtype is None:
            dtype = torch.bfloat16 if has_bf16_units(where) else torch.float32
        folder = find_folder(name)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        loaded = load_pretrained(folder, device=where, dtype=dtype)
        return cls(loaded, autoencoder=autoencoder, vision=vision, slots=slots, card=text)

    def generate(
        self,
        documents: Document | Sequence[Document],
        *,
        want: Wanted = "any",
        size: Size | None = None,
        **settings: Any,
    ) -> list[Document]:
        """Continue interleaved documents: what the model wrote and drew, without the prompt.

        `settings` are fields of `GenerateConfig`; `seed` may be a list. `size` is (height, width) of drawn pictures.
        """
        items = [documents] if isinstance(documents, Document) else list(documents)
        each = self._settings(settings, len(items))
        requests = [
            Request(document=document, want=want, settings=own, size=size)
            for document, own in zip(items, each, strict=True)
        ]
        return self.engine.run(requests)

    def generate_text(self, prompts: str | Sequence[str], **settings: Any) -> list[str]:
        """Continue plain texts."""
        documents = [Document((Text(prompt),)) for prompt in _texts(prompts)]
        return [_text(made) for made in self.generate(documents, want="text", **settings)]

    def generate_images(
        self, prompts: str | Sequence[str], *, size: Size | None = None, **settings: Any
    ) -> list[Picture]:
        """Draw a picture for each prompt."""
        documents = [Document((Text(prompt, "user"),)) for prompt in _texts(prompts)]
        return [_picture(made) for made in self.generate(documents, want="image", size=size, **settings)]

    def caption(self, pictures: Picture | Sequence[Picture], **settings: Any) -> list[str]:
        """Describe pictures in words."""
        documents = [Document((self.context_image(picture),)) for picture in _pictures(pictures)]
        return [_text(made).strip() for made in self.generate(documents, want="text", **settings)]

    def answer(
        self, pictures: Picture | Sequence[Picture], questions: str | Sequence[str], **settings: Any
    ) -> list[str]:
        """Answer a question about each picture."""
        documents = self._pairs(pictures, questions)
        return [_text(made).strip() for made in self.generate(documents, want="text", **settings)]

    def edit(
        self, pictures: Picture | Sequence[Picture], instructions: str | Sequence[str], **settings: Any
    ) -> list[Picture]:
        """Change each picture as its instruction says."""
        return [_picture(made) for made in self.generate(self._pairs(pictures, instructions), want="image", **settings)]

    def chat(self, history: Document | Sequence[Segment], **settings: Any) -> Document:
        """The assistant's next turn, in words or pictures as the model decides; segments carry roles."""
        document = history if isinstance(history, Document) else Document(tuple(history))
        if not document.is_chat:
            raise ValueError('a chat needs roles: Text("hello", "user"), Image.from_pil(picture, role="user")')
        return self.generate(document, **settings)[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder."""
        save_pretrained(folder, self.pretrained, card=self.card)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the model folder, card included, to the Hugging Face hub as `name`; the page's address."""
        import tempfile

        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=folder))

    def context_image(self, picture: Picture) -> Image:
        """The user's picture, resized to the nearest size that the model knows."""
        sizes = self.pretrained.model.config.image_sizes
        width, height = picture.size
        best = min(sizes, key=lambda s: (abs(s[0] / s[1] - height / width), abs(s[0] * s[1] - height * width)))
        if (height, width) != best:
            picture = picture.resize((best[1], best[0]), PILImage.Resampling.LANCZOS)
        return Image.from_pil(picture, role="user")

    def _pairs(self, pictures: Picture | Sequence[Picture], texts: str | Sequence[str]) -> list[Document]:
        shown, said = _pictures(pictures), _texts(texts)
        if len(said) == 1:
            said = said * len(shown)
        if len(shown) != len(said):
            raise ValueError(
                f"there are {len(shown)} pictures but {len(said)} texts; give one text, or one for each picture"
            )
        return [Document((self.context_image(p), Text(t, "user"))) for p, t in zip(shown, said, strict=True)]

    def _settings(self, given: dict[str, Any], count: int) -> list[GenerateConfig]:
        names = [field.name for field in fields(GenerateConfig)]
        for name in given:
            if name not in names:
                near = hint(name, names, otherwise=f"settings are {', '.join(names)}")
                raise ValueError(f"there is no generation setting {name!r}; {near}")
        seed = given.pop("seed", self.pretrained.generate.seed)
        seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise ValueError(f"there are {count} items but {len(seeds)} seeds; give one seed, or one for each item")
        settings = replace(self.pretrained.generate, **given)
        return [replace(settings, seed=own) for own in seeds]


def _texts(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _pictures(value: Picture | Sequence[Picture]) -> list[Picture]:
    return [value] if isinstance(value, PILImage.Image) else list(value)


def _text(made: Document) -> str:
    return "".join(segment.text for segment in made.segments if isinstance(segment, Text))


def _picture(made: Document) -> Picture:
    return made.images[0].to_pil()
