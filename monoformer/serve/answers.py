"""What the server answers, in OpenAI's words. Fields that OpenAI does not have: `images`, `image_progress`, `seed`.

Knows nothing of events. Invariant: an answer's message can be sent back as it came.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from monoformer.serve.schemas import DrawnPart, ImagePart

Finish: TypeAlias = Literal["stop", "length"]


class Answer(BaseModel):
    """What every answer is: fields documented by the lines below them."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Fault(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field that is wrong."""
    code: str | None


class ErrorAnswer(Answer):
    """Any answer with a status of 400 or more."""

    error: Fault


class Model(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Seconds since 1970."""
    owned_by: str = "monoformer"


class Models(Answer):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Tally(Answer):
    """Tokens, those of pictures included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    image_tokens: int
    """Of the completion's, those of pictures."""


class Likely(Answer):
    """A token and how likely it was: the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class Scored(Likely):
    """A token that was written."""

    top_logprobs: list[Likely]


class Scores(Answer):
    """Log-probabilities of tokens in order."""

    content: list[Scored]


class Progress(Answer):
    """How far a picture is."""

    index: int
    """Its number in the answer."""
    step: int
    """Evaluations of the network that are done."""
    steps: int
    """Evaluations that it takes."""
    image: ImagePart | None = None
    """What it would be by now."""


class Said(Answer):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    images: list[DrawnPart] | None = None
    refusal: None = None


class Choice(Answer):
    """One answer."""

    index: int
    message: Said
    logprobs: Scores | None = None
    finish_reason: Finish


class Chat(Answer):
    """A talk, gone on with."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Tally
    seed: int
    """Of the first choice."""


class Delta(Answer):
    """What is new in a streamed turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    image_progress: Progress | None = None
    images: list[DrawnPart] | None = None
    """Finished pictures."""


class ChunkChoice(Answer):
    """What is new in one of the answers."""

    index: int
    delta: Delta
    logprobs: Scores | None = None
    finish_reason: Finish | None = None


class Chunk(Answer):
    """One event of a streamed talk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Tally | None = None


class TextScores(Answer):
    """Log-probabilities of a plain text's tokens, list by list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for a text's first token, which nothing precedes."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Written(Answer):
    """One continuation."""

    index: int
    text: str
    logprobs: TextScores | None = None
    finish_reason: Finish | None = None


class Completion(Answer):
    """Texts, continued; streamed, what is new in them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Written]
    usage: Tally | None = None


class Picture(Answer):
    """One drawn picture."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    """With which it can be drawn again."""


class PictureTokens(Answer):
    """Tokens of what was read."""

    text_tokens: int
    image_tokens: int


class PictureTally(Answer):
    """Tokens of the image interface."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: PictureTokens


class Pictures(Answer):
    """Drawn pictures."""

    created: int
    data: list[Picture]
    size: str
    output_format: str
    usage: PictureTally


class PictureEvent(Answer):
    """One event of a streamed picture: a preview (partial_image) or the picture (completed)."""

    type: str
    b64_json: str
    created_at: int
    index: int
    """Number of the picture."""
    size: str
    output_format: str
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    partial_image_index: int | None = None
    step: int | None = None
    steps: int | None = None
    seed: int | None = None
    usage: PictureTally | None = None
