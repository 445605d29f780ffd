"""The friendly front: load a folder, then write, draw, caption, edit and chat.

    pipeline = Pipeline.from_pretrained("models/mini")
    pipeline.generate_images("a large red circle on a white background")[0].save("circle.png")

Lists in, lists out: every method takes one item or a list and returns a list; item i has seed `seed + i` unless a list
of seeds is given. A picture is one of PIL's, the path of a file, or an array (height, width, 3) of uint8. What an item
makes does not depend on the others (up to the last bits of matrix products). Several threads may use one pipeline,
and calls may be made while a stream is open: they take turns. Ctrl-C ends a call and leaves nothing of it behind.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from monoformer.arguments import (
    Picture,
    PictureLike,
    matched,
    read_documents,
    read_masks,
    read_pictures,
    read_settings,
    read_size,
    read_talk,
    read_texts,
)
from monoformer.autoencoder import Autoencoder
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.device import announce, choose, has_bf16_units, keep_freed_memory
from monoformer.document import Document, Image, Segment, Text, flat, upright
from monoformer.framing import Method, framed
from monoformer.generate.deferred import Deferred
from monoformer.generate.editing import Edit, marks
from monoformer.generate.engine import Engine
from monoformer.generate.session import Event, Request, Wanted
from monoformer.hub import upload
from monoformer.model.decoding import check_compiles
from monoformer.model.packed import can_pack, pack
from monoformer.pretrained import Pretrained, find_folder, load_pretrained, save_pretrained
from monoformer.vision import VisionEncoder, build_vision


class Pipeline:
    """One model, ready to use."""

    def __init__(
        self,
        pretrained: Pretrained,
        *,
        autoencoder: Autoencoder | None = None,
        vision: VisionEncoder | None = None,
        slots: int = 64,
        budget: int = 0,
        deterministic: bool = False,
        compile: bool = False,
        card: str = "",
    ) -> None:
        """`slots` contexts are served at once; more items wait. `budget`, `deterministic`: as in `Engine`.
        `autoencoder`, `vision` None: the model's own; an autoencoder is built when the first picture needs it.
        `compile` compiles the decoding of text at once, which takes up to minutes and makes writing faster.
        """
        self.pretrained = pretrained
        weight = pretrained.model.tokens.weight
        announce(weight.device.type, "engine", "generate", *(["deterministic"] if deterministic else []))
        if autoencoder is None:
            shape = pretrained.model.config
            autoencoder = Deferred(pretrained.autoencoder, shape, device=weight.device, dtype=weight.dtype)
        if vision is None:
            vision = build_vision(pretrained.vision, device=weight.device, dtype=weight.dtype)
        self.engine = Engine(
            pretrained, autoencoder, vision=vision, slots=slots, budget=budget, deterministic=deterministic,
            compile=compile,
        )  # fmt: skip
        self.card = card

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        slots: int = 64,
        budget: int = 0,
        deterministic: bool = False,
        compile: bool = False,
        packed: bool | None = None,
        autoencoder: Autoencoder | str | None = None,
        vision: VisionEncoder | None = None,
    ) -> "Pipeline":
        """Load a model folder, or a model of that name from the Hugging Face hub.

        `dtype` None: bf16 where the device has matrix units for it, else fp32. `packed` holds the weights twice, so
        that a CPU writes up to half as fast again; None: on CPUs. `autoencoder`, `vision` None: those that the folder
        holds or names; an autoencoder may be a folder or hub name too. Raises ValueError when it is no model.
        """
        where = choose(device)
        if compile:
            check_compiles(where)
        if dtype is None:
            dtype = torch.bfloat16 if has_bf16_units(where) else torch.float32
        folder = find_folder(name)
        card = folder / "README.md"
        packs = where.type == "cpu" and can_pack(dtype)
        if packed and not packs:
            raise ValueError(
                f"packed weights need a CPU whose oneDNN multiplies {dtype}, but this is {where}; leave it out"
            )
        loaded = load_pretrained(folder, device=where, dtype=dtype)
        if isinstance(autoencoder, str):
            loaded, autoencoder = replace(loaded, autoencoder=AutoencoderConfig(path=autoencoder)), None
        if packed or (packed is None and packs):
            pack(loaded.model)
        if where.type == "cpu":
            keep_freed_memory()
        return cls(
            loaded, autoencoder=autoencoder, vision=vision, slots=slots, budget=budget, deterministic=deterministic,
            compile=compile, card=card.read_text(encoding="utf-8") if card.is_file() else "",
        )  # fmt: skip

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Other weights of the same network; what the cache knows by the old ones is forgotten, and streams end."""
        with self.engine.turn:
            self.pretrained.model.load_state_dict(weights)
            self.engine.reset()

    def generate(
        self,
        documents: Document | Sequence[Document],
        *,
        want: Wanted = "any",
        size: SupportsIndex | Sequence[SupportsIndex] | None = None,
        choices: str | Sequence[str] = (),
        edits: Sequence[Edit | None] | None = None,
        **settings: Any,
    ) -> list[Document]:
        """Continue interleaved documents: what the model wrote and drew, without the prompt.

        `settings`: fields of `GenerateConfig`; `seed` may be a list. `size`: (height, width) of pictures, or the side.
        With `choices`, for `want` text, the answer is one of them. `edits`: for each item a picture to start from.
        """
        items = read_documents(documents)
        shape, answers = read_size(size, want=want), read_texts(choices, name="choices")
        each = read_settings(settings, self.pretrained.generate, documents=items, want=want, chooses=bool(answers))
        starts = [None] * len(items) if edits is None else list(edits)
        if len(starts) != len(items):
            raise ValueError(f"there are {len(items)} documents but {len(starts)} edits; give one for each, or None")
        if want == "image" or any(document.images for document in items):
            self.prepare_pictures()
        requests = [
            Request(document=document, want=want, settings=own, size=shape, choices=answers, edit=edit)
            for document, own, edit in zip(items, each, starts, strict=True)
        ]
        return self.engine.run(requests)

    def prepare_pictures(self) -> None:
        """Build the autoencoder now, not at the first picture. Raises ValueError where it cannot be had."""
        autoencoder = self.engine.network.autoencoder
        if isinstance(autoencoder, Deferred):
            autoencoder.build()

    def generate_text(
        self, prompts: str | Sequence[str], *, choices: str | Sequence[str] = (), **settings: Any
    ) -> list[str]:
        """Continue plain texts, with the likeliest of `choices` if there are any."""
        documents = [Document((Text(prompt),)) for prompt in read_texts(prompts)]
        return [made.text for made in self.generate(documents, want="text", choices=choices, **settings)]

    def score(self, prompts: str | Sequence[str], choices: str | Sequence[str]) -> list[dict[str, float]]:
        """Log-likelihoods of `choices` as wholes behind each plain text: what `generate_text` with choices compares."""
        answers, settings = read_texts(choices, name="choices", least=1), self.pretrained.generate
        documents = [Document((Text(prompt),)) for prompt in read_texts(prompts)]
        requests = [Request(document=d, want="text", settings=settings, choices=answers) for d in documents]
        return [dict(zip(answers, found, strict=True)) for found in self.engine.likelihoods(requests)]

    def generate_images(
        self,
        prompts: str | Sequence[str],
        *,
        size: SupportsIndex | Sequence[SupportsIndex] | None = None,
        picture: PictureLike | Sequence[PictureLike] | None = None,
        strength: float = 1.0,
        mask: PictureLike | Sequence[PictureLike] | None = None,
        **settings: Any,
    ) -> list[Picture]:
        """Draw a picture for each prompt; from `picture`, which the model need not know how to edit, as `edit` does."""
        said, edits = read_texts(prompts), None
        if picture is not None:
            shown = read_pictures(picture)
            if not shown:
                raise ValueError("there is no picture in the list; give one, or leave picture out")
            if len(shown) != 1:
                said = matched(shown, said)
            edits = self._edits(shown * len(said) if len(shown) == 1 else shown, strength, mask)
        elif strength != 1 or mask is not None:
            raise ValueError("strength and mask have no effect without a picture to start from; give picture")
        documents = [Document((Text(prompt, "user"),)) for prompt in said]
        drawn = self.generate(documents, want="image", size=size, edits=edits, **settings)
        return [made.images[0].to_pil() for made in drawn]

    def caption(self, pictures: PictureLike | Sequence[PictureLike], **settings: Any) -> list[str]:
        """Describe pictures in words."""
        documents = [Document((self.context_image(picture),)) for picture in read_pictures(pictures)]
        return [made.text.strip() for made in self.generate(documents, want="text", **settings)]

    def answer(
        self,
        pictures: PictureLike | Sequence[PictureLike],
        questions: str | Sequence[str],
        *,
        choices: str | Sequence[str] = (),
        **settings: Any,
    ) -> list[str]:
        """Answer a question about each picture, with the likeliest of `choices` if there are any."""
        documents = self._pairs(read_pictures(pictures), questions)
        return [made.text.strip() for made in self.generate(documents, want="text", choices=choices, **settings)]

    def edit(
        self,
        pictures: PictureLike | Sequence[PictureLike],
        instructions: str | Sequence[str],
        *,
        strength: float = 1.0,
        mask: PictureLike | Sequence[PictureLike] | None = None,
        **settings: Any,
    ) -> list[Picture]:
        """Change each picture as its instruction says.

        Below `strength` 1 it is redrawn from the picture noised to that time, so that much of it stays. With a `mask`
        only what is white there, or transparent where anything is (as in OpenAI's masks), is drawn, and every other
        pixel stays as it is.
        """
        shown = read_pictures(pictures)
        documents, edits = self._pairs(shown, instructions), None
        if strength != 1 or mask is not None:
            edits = self._edits(shown, strength, mask)
        return [made.images[0].to_pil() for made in self.generate(documents, want="image", edits=edits, **settings)]

    def chat(self, history: Document | Sequence[Segment], **settings: Any) -> Document:
        """The assistant's next turn, in words or pictures as it decides; segments carry roles."""
        return self.generate(read_talk(history), **settings)[0]

    def stream(self, history: Document | Sequence[Segment], *, previews: int = 0, **settings: Any) -> Iterator[Event]:
        """What happens while the assistant's next turn is made: `text` as it is written, `progress` of a picture (every
        `previews` evaluations with a preview), `image`, and `end`, which holds all that was made or says what failed.
        """
        document = read_talk(history)
        (own,) = read_settings(settings, self.pretrained.generate, documents=[document])
        if document.images:
            self.prepare_pictures()
        return self.engine.listen([Request(document=document, want="any", settings=own, previews=previews)])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder."""
        save_pretrained(folder, self.pretrained, card=self.card)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the model folder, card included, to the Hugging Face hub as `name`; the page's address."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            return upload(folder, name, private=private)

    def context_image(self, picture: Picture) -> Image:
        """The user's picture as training prepares one: upright, on white, in the nearest size that the model knows."""
        return Image.from_pil(self._framed(flat(picture)), role="user")

    def context_mask(self, mask: Picture, picture: Picture, *, or_white: bool) -> Tensor:
        """What a mask that lies over a picture marks (`marks`), bool on the pixels of `context_image(picture)`.

        Of what is shrunk to one pixel, any marked one marks it.
        """
        marked = marks(upright(mask), or_white=or_white).resize(upright(picture).size, Method.BOX)
        return torch.from_numpy(np.array(self._framed(marked, method=Method.BOX)) > 0)

    def _framed(self, picture: Picture, *, method: Method = Method.LANCZOS) -> Picture:
        sizes = self.pretrained.model.config.image_sizes
        return framed(picture, sizes, shape=self.pretrained.picture_shape, method=method)

    def _pairs(self, pictures: list[Picture], texts: str | Sequence[str]) -> list[Document]:
        said = matched(pictures, read_texts(texts, name="texts"))
        return [Document((self.context_image(p), Text(t, "user"))) for p, t in zip(pictures, said, strict=True)]

    def _edits(
        self, pictures: list[Picture], strength: float, masks: PictureLike | Sequence[PictureLike] | None
    ) -> list[Edit | None]:
        edits: list[Edit | None] = []
        for picture, mask in zip(pictures, read_masks(masks, count=len(pictures)), strict=True):
            chosen = None if mask is None else self.context_mask(mask, picture, or_white=True)
            edits.append(Edit(pixels=self.context_image(picture).pixels, strength=strength, mask=chosen))
        return edits
