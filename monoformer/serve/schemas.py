"""What clients may ask, in OpenAI's words, with fields of our own for drawing.

Knows nothing of models: what a model or a server's limits refuse is found later. Invariant: a field that would have no
effect is refused with a reason, but for those that concern OpenAI's own housekeeping, and values that ask for nothing.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from monoformer.config.spelling import hint

WITHOUT_EFFECT = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
}
"""Accepted everywhere, and used for nothing."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": ([],), "audio": (), "background": ("auto", "opaque"), "best_of": (1,), "frequency_penalty": (0,),
    "function_call": ("none",), "functions": ([],), "input_fidelity": ("low",), "moderation": ("auto", "low"),
    "parallel_tool_calls": (True, False), "presence_penalty": (0,), "quality": ("auto", "standard"),
    "reasoning_effort": ("none",), "response_format": ({"type": "text"},), "style": (), "suffix": ("",),
    "tool_calls": ([],), "tool_choice": ("none", "auto"), "tools": ([],), "verbosity": ("medium",),
}  # fmt: skip
"""Fields of OpenAI's that have no meaning here, and the values of them that ask for nothing."""

Temperature: TypeAlias = Annotated[float, Field(ge=0, le=2)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Time: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Scale: TypeAlias = Annotated[float, Field(ge=0, le=100)]
Size: TypeAlias = Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")]
Seed: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
Tokens: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Words: TypeAlias = Annotated[str, Field(max_length=1000)]


class Question(BaseModel):
    """What every body has: types are exact, unknown fields refused, null means not given."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        kept: dict[str, Any] = {}
        for name, value in given.items():
            if name in known:
                kept[name] = value
                _check_text(name, value)
            elif value is None or name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ()):
                continue
            elif name in NEUTRAL:
                raise _refusal(name, f"{name} is not supported here; leave it out")
            else:
                near = hint(str(name), known, otherwise=f"known are {', '.join(known)}")
                raise _refusal(str(name)[:100], f"there is no field {str(name)[:100]!r}; {near}")
        return {name: value for name, value in kept.items() if value is not None or known[name].is_required()}


def _check_text(name: str, value: Any) -> None:
    """JSON can say half a surrogate pair, which no tokenizer reads."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            raise _refusal(name, f"{name} is no Unicode text: it has half of a surrogate pair")


def _refusal(field: str, message: str) -> PydanticCustomError:
    """Of one field, by a body as a whole."""
    return PydanticCustomError("refused", "{message}", {"field": field, "message": message})


class TextPart(Question):
    """Words."""

    type: Literal["text"]
    text: str


class ImageAddress(Question):
    """Where a picture is."""

    url: str
    """data:image/png;base64,... (PNG, JPEG, WebP or GIF); an http or https address only where the server allows it."""
    detail: Literal["auto", "low", "high"] = "auto"
    """No effect: a picture is read at the size that the model was trained on."""


class ImagePart(Question):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageAddress


class DrawnPart(ImagePart):
    """A picture of the assistant's, as answers hold it."""

    index: int = 0
    """Its number in the answer."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Characters of the answer's text before it."""


Part: TypeAlias = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Question):
    """One turn of a talk."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    """Words, or words and pictures in reading order."""
    images: list[DrawnPart] | None = None
    """Of an assistant's message: the pictures that it drew, so that an answer can be sent back as it came."""
    name: str | None = None
    """No effect."""
    refusal: str | None = None
    """No effect."""

    @model_validator(mode="after")
    def _complete(self) -> "Message":
        if self.content is None and not self.images:
            raise ValueError("a message needs content")
        if self.images and self.role != "assistant":
            raise ValueError("only an assistant's message has images; a user's are parts of its content")
        return self


class StreamOptions(Question):
    """How an answer is streamed."""

    include_usage: bool = False
    """Send the numbers of tokens at the end."""
    include_obfuscation: bool = False
    """No effect."""


class Asked(Question):
    """What every request that makes something may say."""

    model: str | None = None
    """A name that /v1/models lists; null: the model that is served."""
    n: Count = 1
    """Answers, or pictures."""
    seed: Seed | None = None
    """Of the first answer; the next ones have the next numbers. Null: another one every time."""
    stream: bool = False
    """Send what is made as server-sent events while it is made."""


class Writing(Question):
    """Settings of text; null: the model's own."""

    temperature: Temperature | None = None
    """0 takes the likeliest token."""
    top_p: Share | None = None
    """Sample among the likeliest tokens that together reach this probability."""
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Sample among the k likeliest tokens; 0: among all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample among tokens at least so many times as likely as the likeliest."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Above 1, words of the text so far become less likely."""
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    """Token ids and what is added to their logits."""
    stop: Words | Annotated[list[Words], Field(max_length=16)] | None = None
    """Strings that end the text; they are not part of it."""
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Most text tokens of an answer."""
    stream_options: StreamOptions | None = None


class Drawing(Question):
    """Settings of pictures; null: the model's own."""

    size: Size | None = None
    """Width x height of a drawn picture, such as 64x64; one that the model was trained on."""
    steps: Count | None = None
    """Denoising steps."""
    guidance: Scale | None = None
    """How strongly the text guides; 1: not at all."""
    image_guidance: Scale | None = None
    """The same for pictures that are read."""
    guidance_interval: Annotated[list[Time], Field(min_length=2, max_length=2)] | None = None
    """Two times between which guidance is applied, from 0 (clean) to 1 (noise)."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] | None = None
    """How far guidance's deviation is drawn back."""
    negative: str | None = None
    """A text that guidance leads away from."""
    sampler: Literal["euler", "heun", "ddpm", "ddim", "dpm++2m"] | None = None
    spacing: Literal["uniform", "quadratic"] | None = None
    """Where the steps lie in time."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise that ddim adds."""
    partial_images: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """At most so many previews of each picture, of a streamed answer."""


class ChatQuestion(Asked, Writing, Drawing):
    """A talk, to be gone on with in words or pictures as the model decides."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Another name of max_tokens."""
    logprobs: bool = False
    """Tell the log-probabilities of the tokens that are written."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """And of so many of the likeliest ones at each place."""
    modalities: list[Literal["text", "image"]] | None = None
    """What the answer may be: ["text"], ["image"] (one picture and nothing else); both, or null: the model decides."""


class TextQuestion(Asked, Writing):
    """Plain texts to be continued."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]
    """A text or its token ids, or several of them; each is continued `n` times."""
    echo: bool = False
    """Repeat the prompt before what was written."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Tell the log-probabilities of the tokens, with `echo` the prompt's too, and of so many of the likeliest ones at
    each place."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each text, or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        found = [one for one in self.prompt if not isinstance(one, int)]
        return found or [[token for token in self.prompt if isinstance(token, int)]]


class ImageOutput(Asked, Drawing):
    """A picture to be drawn, and how it is sent."""

    prompt: Annotated[str, Field(min_length=1)]
    response_format: Literal["b64_json", "url"] = "b64_json"
    """url is a data: address."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    """Quality of JPEG and WebP."""

    @model_validator(mode="after")
    def _matters(self) -> "ImageOutput":
        if "output_compression" in self.model_fields_set and self.output_format == "png":
            raise _refusal("output_compression", "output_compression has no effect on png; leave it out")
        if self.stream and self.response_format == "url":
            raise _refusal("response_format", "a streamed picture comes as b64_json; leave response_format out")
        return self


class ImageQuestion(ImageOutput):
    """A picture from words."""


class EditQuestion(ImageOutput):
    """The fields of a form that asks for another picture; its files are `image` (or several `image[]`) and `mask`."""

    strength: Share = 1.0
    """Below 1 the picture is redrawn from the noised one: near 0 hardly anything changes."""
