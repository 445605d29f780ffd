"""The friendly front: load a folder, then write, draw, caption, edit and chat.

    pipeline = Pipeline.from_pretrained("models/mini")
    pipeline.generate_images("a large red circle on a white background")[0].save("circle.png")

Lists in, lists out: every method takes one item or a list and returns a list; item i has seed `seed + i` unless a list
of seeds is given. What an item makes does not depend on the others (up to the last bits of matrix products). Several
threads may use one pipeline: their calls wait for one another. Ctrl-C ends a call and leaves nothing of it behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage

from monoformer.autoencoder import Autoencoder, build_autoencoder
from monoformer.config.generate import GenerateConfig, changed
from monoformer.config.spelling import hint
from monoformer.device import choose, has_bf16_units
from monoformer.document import Document, Image, Segment, Text
from monoformer.generate.editing import Edit, read_mask
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request, Wanted
from monoformer.model.packed import can_pack, pack
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
        deterministic: bool = False,
        card: str = "",
    ) -> None:
        """`slots` contexts are served at once; more items wait. `autoencoder`, `vision` None: the model's own.

        `deterministic`: an item has the same bits alone and among others, at the price of padded passes.
        """
        self.pretrained = pretrained
        weight = pretrained.model.tokens.weight
        if autoencoder is None:
            autoencoder = build_autoencoder(pretrained.autoencoder, device=weight.device, dtype=weight.dtype)
        if vision is None:
            vision = build_vision(pretrained.vision, device=weight.device, dtype=weight.dtype)
        self.engine = Engine(pretrained, autoencoder, vision=vision, slots=slots, deterministic=deterministic)
        self.card = card

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        slots: int = 64,
        deterministic: bool = False,
        packed: bool | None = None,
        autoencoder: Autoencoder | None = None,
        vision: VisionEncoder | None = None,
    ) -> "Pipeline":
        """Load a model folder, or a model of that name from the Hugging Face hub.

        `dtype` None: bf16 where the device has matrix units for it, else fp32. `packed` holds the weights twice, so
        that a CPU writes up to half as fast again; None: on CPUs. `autoencoder`, `vision` None: those that the folder
        holds or names. Raises ValueError when it is no model.
        """
        where = choose(device)
        if dtype is None:
            dtype = torch.bfloat16 if has_bf16_units(where) else torch.float32
        folder = find_folder(name)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        if packed and not (where.type == "cpu" and can_pack()):
            raise ValueError(f"packed weights need a CPU and a PyTorch with oneDNN, but this is {where}; leave it out")
        loaded = load_pretrained(folder, device=where, dtype=dtype)
        if packed or (packed is None and where.type == "cpu" and can_pack()):
            pack(loaded.model)
        return cls(loaded, autoencoder=autoencoder, vision=vision, slots=slots, deterministic=deterministic, card=text)

    def generate(
        self,
        documents: Document | Sequence[Document],
        *,
        want: Wanted = "any",
        size: Size | None = None,
        choices: Sequence[str] = (),
        edits: Sequence[Edit | None] | None = None,
        **settings: Any,
    ) -> list[Document]:
        """Continue interleaved documents: what the model wrote and drew, without the prompt.

        `settings` are fields of `GenerateConfig`; `seed` may be a list. `size` is (height, width) of drawn pictures.
        With `choices`, for `want` text, the answer is one of them. `edits`: for each item a picture to start from.
        """
        items = [documents] if isinstance(documents, Document) else list(documents)
        if settings.get("image_guidance", 1.0) != 1 and not all(document.images for document in items):
            raise ValueError("image_guidance has no effect without pictures to read; leave it out")
        each = self._settings(settings, len(items))
        requests = [
            Request(document=document, want=want, settings=own, size=size, choices=tuple(choices), edit=edit)
            for document, own, edit in zip(items, each, edits or [None] * len(items), strict=True)
        ]
        return self.engine.run(requests)

    def generate_text(self, prompts: str | Sequence[str], *, choices: Sequence[str] = (), **settings: Any) -> list[str]:
        """Continue plain texts, with the likeliest of `choices` if there are any."""
        documents = [Document((Text(prompt),)) for prompt in _texts(prompts)]
        return [_text(made) for made in self.generate(documents, want="text", choices=choices, **settings)]

    def generate_images(
        self,
        prompts: str | Sequence[str],
        *,
        size: Size | None = None,
        picture: Picture | Sequence[Picture] | None = None,
        strength: float = 1.0,
        mask: Picture | None = None,
        **settings: Any,
    ) -> list[Picture]:
        """Draw a picture for each prompt.

        With `picture` it starts from that, which the model need not know how to edit: `strength` and `mask` as in
        `edit`.
        """
        documents = [Document((Text(prompt, "user"),)) for prompt in _texts(prompts)]
        edits = None
        if picture is not None:
            shown = _pictures(picture)
            edits = self._edits(shown * len(documents) if len(shown) == 1 else shown, strength, mask)
        elif strength != 1 or mask is not None:
            raise ValueError("strength and mask have no effect without a picture to start from; give picture")
        drawn = self.generate(documents, want="image", size=size, edits=edits, **settings)
        return [_picture(made) for made in drawn]

    def caption(self, pictures: Picture | Sequence[Picture], **settings: Any) -> list[str]:
        """Describe pictures in words."""
        documents = [Document((self.context_image(picture),)) for picture in _pictures(pictures)]
        return [_text(made).strip() for made in self.generate(documents, want="text", **settings)]

    def answer(
        self,
        pictures: Picture | Sequence[Picture],
        questions: str | Sequence[str],
        *,
        choices: Sequence[str] = (),
        **settings: Any,
    ) -> list[str]:
        """Answer a question about each picture, with the likeliest of `choices` if there are any."""
        documents = self._pairs(pictures, questions)
        return [_text(made).strip() for made in self.generate(documents, want="text", choices=choices, **settings)]

    def edit(
        self,
        pictures: Picture | Sequence[Picture],
        instructions: str | Sequence[str],
        *,
        strength: float = 1.0,
        mask: Picture | None = None,
        **settings: Any,
    ) -> list[Picture]:
        """Change each picture as its instruction says.

        Below `strength` 1 it is redrawn from the picture noised to that time, so that much of it stays. With a `mask`
        only what is white there, or transparent where anything is (as in OpenAI's masks), is drawn, and every other
        pixel stays as it is.
        """
        documents, edits = self._pairs(pictures, instructions), None
        if strength != 1 or mask is not None:
            edits = self._edits(_pictures(pictures), strength, mask)
        return [_picture(made) for made in self.generate(documents, want="image", edits=edits, **settings)]

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

    def _edits(self, pictures: list[Picture], strength: float, mask: Picture | None) -> list[Edit | None]:
        edits: list[Edit | None] = []
        for picture in pictures:
            pixels = self.context_image(picture).pixels
            chosen = None
            if mask is not None:
                chosen = read_mask(mask, (pixels.shape[1], pixels.shape[2]), or_white=True)
            edits.append(Edit(pixels=pixels, strength=strength, mask=chosen))
        return edits

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
        if isinstance(given.get("logit_bias"), Mapping):
            given["logit_bias"] = tuple(given["logit_bias"].items())
        settings = changed(self.pretrained.generate, given)
        return [replace(settings, seed=own) for own in seeds]


def _texts(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _pictures(value: Picture | Sequence[Picture]) -> list[Picture]:
    return [value] if isinstance(value, PILImage.Image) else list(value)


def _text(made: Document) -> str:
    return "".join(segment.text for segment in made.segments if isinstance(segment, Text))


def _picture(made: Document) -> Picture:
    return made.images[0].to_pil()
