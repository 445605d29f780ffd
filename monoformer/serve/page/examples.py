"""Things to click on: prompts, edits and questions such as the model was trained on.

Knows documents, nothing of where they come from.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from monoformer.document import Document, Image, Text

MOST = 6
"""Examples of each kind."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples of what a model was trained on; a kind that it was not is empty."""

    prompts: tuple[str, ...] = ()
    """Texts to draw a picture from."""
    described: tuple[Image, ...] = ()
    """Pictures to be described."""
    asked: tuple[tuple[Image, str], ...] = ()
    """Pictures with a question."""
    edits: tuple[tuple[Image, str], ...] = ()
    """Pictures with an instruction that changes them."""
    talks: bool = False
    """Whether a document had several turns: else the model knows one question and its answer, and no longer talk."""


def find_examples(documents: Iterable[Document], *, most: int = MOST) -> Examples:
    """The first examples of each kind among chats of one question and one answer; reads on until every kind is full."""
    prompts: dict[str, None] = {}
    described: list[Image] = []
    asked: list[tuple[Image, str]] = []
    edits: list[tuple[Image, str]] = []
    talks = False
    for document in documents:
        talks |= _turns(document) > 1
        match document.segments:
            case (Text(text, "user"), Image(role="assistant")) if len(prompts) < most:
                prompts[text] = None
            case (Image(role="user") as image, Text(_, "assistant")) if len(described) < most:
                described.append(image)
            case (Image(role="user") as image, Text(text, "user"), Text(_, "assistant")) if len(asked) < most:
                asked.append((image, text))
            case (Image(role="user") as image, Text(text, "user"), Image(role="assistant")) if len(edits) < most:
                edits.append((image, text))
        if min(len(prompts), len(described), len(asked), len(edits)) == most:
            break
    return Examples(
        prompts=tuple(prompts), described=tuple(described), asked=tuple(asked), edits=tuple(edits), talks=talks
    )


def _turns(document: Document) -> int:
    """Turns of the assistant."""
    return sum(role == "assistant" for role, _ in groupby(segment.role for segment in document.segments))
