"""Requests, what happens to them, and the state of one that is being served.

Knows nothing of passes or caches beyond their names. Invariant: `made`, then
`words`, is what the session has told its user so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from monoformer.batch import Layout
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.document import Document, Image, Role, Text
from monoformer.generate.editing import Edit
from monoformer.generate.image import Drawing, Preview
from monoformer.generate.passes import Context
from monoformer.generate.prefill import Reading
from monoformer.generate.text import Score
from monoformer.generate.textstream import TextStream

Wanted: TypeAlias = Literal["text", "image", "any"]
"""Nothing but text, one picture and nothing else, or whatever the model decides."""

Reason: TypeAlias = Literal["stop", "length", "image", "cancelled", "error"]
"""Why a session ended: the model or a stop string said so, no room was left, the one picture is done, its user went
away, or something about this request alone failed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A document so far, and what is wanted next."""

    document: Document
    tokens: tuple[int, ...] = ()
    """The prompt as token ids instead, for `want` text; bos goes before them unless they begin with it."""
    want: Wanted = "any"
    settings: GenerateConfig
    """Sampler, steps, guidance, temperature, ...; `settings.seed` is the request's own."""
    size: tuple[int, int] | None = None
    """Height and width of a drawn picture; None: the edited one's, else the last context image's, else the default."""
    edit: Edit | None = None
    """A picture to start from, for `want` image."""
    previews: int = 0
    """Every how many evaluations of a picture its progress has a preview; 0: never."""
    choices: tuple[str, ...] = ()
    """Answers of which one is given, for `want` text: the likeliest as a whole, or at a temperature one drawn by
    likelihood. Settings of single tokens play no part."""
    log_probabilities: int | None = None
    """Tell the log-probabilities of the tokens that are written, and of so many of the likeliest at each place."""
    prompt_log_probabilities: bool = False
    """Tell those of the prompt's tokens as well, in an event of their own."""

    def __post_init__(self) -> None:
        if self.want not in get_args(Wanted):
            raise ValueError(f"want must be one of {', '.join(get_args(Wanted))}, but is {self.want!r}")
        if self.tokens and (self.want != "text" or self.document.segments):
            raise ValueError("a prompt of token ids is for want text, and has no document beside it")
        if self.edit is not None and self.want != "image":
            raise ValueError(f"an edit draws one picture, but {self.want!r} is wanted; want image")
        if self.edit is not None and self.size not in (None, self.edit.size):
            raise ValueError(f"the edited picture is {self.edit.size}, but {self.size} is asked for; leave size out")
        if self.previews < 0 or (self.previews and self.want == "text"):
            raise ValueError(f"previews must be 0 or more, and 0 for text, but is {self.previews}")
        if self.choices and (self.want != "text" or self.log_probabilities is not None):
            raise ValueError("choices need want text, and their likelihoods are told without log_probabilities")
        if "" in self.choices or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices must differ and not be empty, but are {self.choices}")
        if self.log_probabilities is not None and (self.want == "image" or self.log_probabilities < 0):
            raise ValueError(
                f"log_probabilities must be 0 or more, for a request that may write, but is {self.log_probabilities} "
                f"where {self.want!r} is wanted"
            )
        if self.prompt_log_probabilities and self.log_probabilities is None:
            raise ValueError(
                "prompt_log_probabilities needs log_probabilities; 0 tells no others than the prompt's own"
            )

    def picture_size(self, document: Document, model: ModelConfig) -> tuple[int, int]:
        """Height and width of a picture drawn after `document`; ValueError if never trained."""
        size = self.edit.size if self.edit is not None else self.size
        return picture_size(document, size, model)


@dataclass(frozen=True)
class Usage:
    """Tokens of one session."""

    read: int = 0
    """Of its prompt, pictures included."""
    shown: int = 0
    """Of the pictures in its prompt."""
    written: int = 0
    """Of text."""
    drawn: int = 0
    """Of its pictures."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a session."""

    session: int
    kind: Literal["prompt", "text", "progress", "image", "end"]
    text: str = ""
    """New text; empty where tokens are held back that may yet turn out to be a stop string. Of kind `prompt`: the
    prompt's, where that was given as token ids."""
    scores: tuple[Score, ...] = ()
    """Log-probabilities of the tokens written since the last such event; of kind `prompt`, of the prompt's."""
    likelihoods: tuple[float, ...] = ()
    """Log-likelihood of each of the given choices."""
    image: Image | None = None
    """The finished picture."""
    step: int = 0
    """Evaluations done of the picture in progress."""
    steps: int = 0
    """Evaluations that it takes."""
    preview: Preview | None = None
    """What it would be by the estimate of this step."""
    reason: Reason | None = None
    """Why the session ended."""
    error: str = ""
    """What failed, where the reason is an error."""
    made: Document | None = None
    """At the end: everything that the session made."""
    usage: Usage = Usage()
    """At the end: what it took."""


class FailedRequestsError(RuntimeError):
    """Some requests of a call failed."""

    def __init__(self, ends: Sequence[Event]) -> None:
        """`ends` are the last events of all requests, in their order: those of the others have what they made."""
        errors = [end.error for end in ends if end.reason == "error"]
        super().__init__(f"{len(errors)} of {len(ends)} requests failed: {errors[0]}")
        self.ends = ends


class RefusedRequestsError(ValueError):
    """Some requests of a call cannot be served, so that none of them is."""

    def __init__(self, errors: Sequence[str]) -> None:
        """`errors` say for each request what is wrong with it; empty: nothing."""
        super().__init__(next(error for error in errors if error))
        self.errors = errors


@dataclass
class Session:
    """One request being served: it reads, then draws or writes a token, and reads again."""

    request: Request
    layouts: list[Layout]
    """The prompt, and for a picture alone what guidance compares it with."""
    random: torch.Generator
    stream: TextStream
    number: int = -1
    """Given when it is queued."""
    slots: list[int] = field(default_factory=list)
    """Slots that it uses until it ends, shared ones too."""
    spare: list[int] = field(default_factory=list)
    """Those of them that are for the contexts that guidance will compare with."""
    context: Context | None = None
    readings: list[Reading] = field(default_factory=list)
    """What must be read before it goes on: its own context's, and those of guidance."""
    token: int | None = None
    """The token written last, not yet read."""
    opens: bool = False
    """Whether a picture begins when everything is read."""
    drawing: Drawing | None = None
    made: list[Text | Image] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """Pieces of text told since, which `gather` makes one of."""
    tokens: list[int] = field(default_factory=list)
    """Text tokens since the last picture."""
    seen: Tensor | None = None
    """Tokens that the repetition penalty knows of, bool (V,)."""
    scores: list[Score] = field(default_factory=list)
    """Log-probabilities not yet told."""
    written: int = 0
    pictures: int = 0
    drawn: int = 0
    """Tokens of its pictures."""

    @property
    def usage(self) -> Usage:
        """The tokens that it took so far."""
        prompt = self.layouts[0]
        shown = sum(block.grid[0] * block.grid[1] for block in prompt.blocks)
        return Usage(len(prompt), shown, self.written, self.drawn)

    @property
    def role(self) -> Role | None:
        """Whose words and pictures these are."""
        return "assistant" if self.request.document.is_chat else None

    def say(self, delta: str) -> None:
        """Note new words: they belong to those before them."""
        self.words.append(delta)

    def gather(self) -> list[Text | Image]:
        """All that it has made, with the words that were told last."""
        said, self.words = "".join(self.words), []
        if said and self.made and isinstance(last := self.made[-1], Text):
            self.made[-1] = Text(last.text + said, self.role)
        elif said:
            self.made.append(Text(said, self.role))
        return self.made

    def show(self, image: Image) -> None:
        """Note the finished picture."""
        self.gather().append(image)
        self.drawing, self.pictures = None, self.pictures + 1

    def close(self) -> None:
        """It has ended: what it used is others' now."""
        self.context, self.drawing, self.slots, self.readings, self.token = None, None, [], [], None

    def so_far(self) -> Document:
        """The request's document and what was made since."""
        return Document((*self.request.document.segments, *self.gather()))

    def shown(self) -> Document:
        """The same without the words since the last picture, which a picture's size does not depend on."""
        return Document((*self.request.document.segments, *self.made))


def picture_size(document: Document, size: tuple[int, int] | None, model: ModelConfig) -> tuple[int, int]:
    """The requested height and width, else the last image's, else the model's default; ValueError if never trained."""
    if size is None and document.images:
        height, width = document.images[-1].pixels.shape[-2:]
        size = (height, width)
    size = model.image_sizes[0] if size is None else size
    if size not in model.image_sizes:
        known = ", ".join(f"{h}x{w}" for h, w in model.image_sizes)
        asked = f"{size[0]}x{size[1]} pictures (height x width)"
        raise ValueError(f"the model was not trained to draw {asked}; sizes are {known}")
    return size
