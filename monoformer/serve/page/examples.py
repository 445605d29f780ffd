"""Things to click on: prompts, edits and questions such as the model was trained on.

Knows documents, nothing of where they come from.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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


def find_examples(documents: Iterable[Document], *, most: int = MOST) -> Examples:
    """The first examples of each kind among chats of one question and one answer; reads on until every kind is full."""
    prompts: dict[str, None] = {}
    described: list[Image] = []
    asked: list[tuple[Image, str]] = []
    edits: list[tuple[Image, str]] = []
    for document in documents:
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
    return Examples(prompts=tuple(prompts), described=tuple(described), asked=tuple(asked), edits=tuple(edits))
