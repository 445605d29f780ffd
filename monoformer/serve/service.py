"""What every route works with, and the way from a question to the engine's requests.

Invariant: what goes beyond the server's limits is refused before anything is decoded or queued.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image as PILImage

from monoformer.config.generate import GenerateConfig, changed, check_matters, from_words
from monoformer.config.serve import Limits, ServeConfig
from monoformer.document import Document
from monoformer.generate.session import Request, Wanted
from monoformer.pipeline import Pipeline
from monoformer.serve.batcher import Batcher
from monoformer.serve.errors import ApiError, refusals
from monoformer.serve.metrics import Meters
from monoformer.serve.pictures import decode, from_address
from monoformer.serve.remote import fetch
from monoformer.serve.replicas import Replicas
from monoformer.serve.schemas import Asked, Drawing, Writing
from monoformer.serve.stream import Stream

WORDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
STROKES = (
    *("steps", "guidance", "image_guidance", "guidance_interval", "guidance_rescale", "negative", "sampler", "spacing"),
    "eta",
)
"""Fields of questions that are settings of the same name."""
EMPTY = Document(())


@dataclass(frozen=True, kw_only=True)
class Service:
    """One model, being served."""

    pipeline: Pipeline
    batcher: Batcher | Replicas
    config: ServeConfig
    name: str
    """What clients call the model."""
    meters: Meters
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return self.config.limits

    def check(self, asked: Asked, *, texts: list[str], count: int) -> None:
        """Refuse a model that is not here, and what is beyond the limits; `count` answers are asked for in all."""
        if asked.model not in (None, self.name):
            message = f"the model {asked.model!r} is not served here; there is {self.name!r}"
            raise ApiError(message, status=404, parameter="model", code="model_not_found")
        limits = self.limits
        _check("n", count, limits.count)
        _check("prompt", sum(map(len, texts)), limits.prompt, what=" characters")
        if isinstance(asked, Drawing):
            _check("steps", asked.steps or 0, limits.steps)
            _check("partial_images", asked.partial_images, limits.steps)
            if asked.partial_images and not asked.stream:
                raise ApiError("partial_images has no effect without stream", parameter="partial_images")
        if isinstance(asked, Writing):
            _check("max_tokens", asked.max_tokens or 0, limits.max_tokens)
            if asked.stream_options and not asked.stream:
                raise ApiError("stream_options has no effect without stream", parameter="stream_options")

    def settings(self, asked: Asked, document: Document = EMPTY, *, want: Wanted = "any") -> GenerateConfig:
        """The model's settings with those of the question about a document; a seed of its own if it names none.

        Raises ApiError for those that cannot matter for what is wanted.
        """
        given: dict[str, Any] = {"seed": secrets.randbelow(2**31) if asked.seed is None else asked.seed}
        for name in (*WORDS, *STROKES):
            value = getattr(asked, name, None)
            if value is not None:
                given[name] = tuple(value) if isinstance(value, list) else value
        if isinstance(asked, Writing):
            if asked.max_tokens is not None:
                given["max_tokens"] = asked.max_tokens
            if asked.stop is not None:
                given["stop"] = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop)
            if asked.logit_bias:
                given["logit_bias"] = tuple((int(token), bias) for token, bias in asked.logit_bias.items() if bias)
        if given.get("image_guidance", 1) != 1 and not document.images:
            message = "image_guidance has no effect without pictures to read; leave it out"
            raise ApiError(message, parameter="image_guidance")
        with refusals():
            check_matters({name: value for name, value in given.items() if name != "seed"}, want=want)
            defaults = self.pipeline.pretrained.generate
            settings = changed(from_words(defaults) if want == "image" and not document.images else defaults, given)
        most = self.limits  # what the question does not name is the folder's or the sampler's, and may be more
        return replace(
            settings, max_tokens=min(settings.max_tokens, most.max_tokens), steps=min(settings.steps, most.steps)
        )

    async def picture(self, url: str, *, parameter: str) -> PILImage.Image:
        """The picture at an address, decoded off the event loop."""
        if url.startswith(("http://", "https://")):
            if not self.config.remote_images:
                message = "this server fetches no pictures; send them as data:image/...;base64,..."
                raise ApiError(message, parameter=parameter, code="invalid_image_url")
            data = await asyncio.to_thread(fetch, url, most=self.limits.body, parameter=parameter)
            return await asyncio.to_thread(decode, data, limits=self.limits, parameter=parameter)
        return await asyncio.to_thread(partial(from_address, url, limits=self.limits, parameter=parameter))

    async def submit(self, *requests: Request) -> Stream:
        """Queue requests; what the engine refuses is the client's mistake."""
        with refusals():
            return await self.batcher.submit(*requests)


def requests(document: Document, settings: GenerateConfig, *, count: int, **options: Any) -> list[Request]:
    """`count` requests of one document with seeds that follow each other. Raises ApiError if they contradict."""
    with refusals():
        return [
            Request(document=document, settings=replace(settings, seed=settings.seed + place), **options)
            for place in range(count)
        ]


def size_of(size: str | None) -> tuple[int, int] | None:
    """Height and width from the words of an interface: `64x32` is 64 wide; None where it leaves the choice to us."""
    if size in (None, "auto"):
        return None
    width, height = map(int, str(size).split("x"))
    return height, width


def every(partial_images: int, settings: GenerateConfig) -> int:
    """After how many evaluations each preview comes, so that there are at most so many before the picture."""
    evaluations = 2 * settings.steps - 1 if settings.sampler == "heun" else settings.steps
    return -(-evaluations // (partial_images + 1)) if partial_images else 0


def _check(name: str, value: int, most: int, *, what: str = "") -> None:
    if value > most:
        raise ApiError(f"{name} may be at most {most}{what} here, but is {value}", parameter=name, code="too_large")
