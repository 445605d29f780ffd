"""A talk as the page keeps it, and as the model reads it.

The page's messages are the usual dictionaries, {"role", "content"}; their content is text or files, alone or in a list.
Knows nothing of Gradio. Invariant: a picture that the model drew comes back with its very pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image as PILImage

from monoformer.document import Document, Image, Role, Segment, Text
from monoformer.generate.session import Event
from monoformer.serve.page.board import Board
from monoformer.serve.page.pictures import TILES, open_picture, png_bytes

Message: TypeAlias = dict[str, Any]

Memory: TypeAlias = Literal["talk", "picture", "nothing"]
"""What is read before a new message: everything, the last picture alone, or nothing."""

Reader: TypeAlias = Callable[[PILImage.Image], Image]
"""Makes a user's picture one that the model can read."""


def read_talk(
    history: Sequence[Mapping[str, Any]], message: Mapping[str, Any], *, memory: Memory, reader: Reader
) -> Document:
    """As much of the talk so far as `memory` says, and the user's new message: pictures first, then words.

    Raises ValueError for an empty message, or for a file that is no picture.
    """
    new: list[Segment] = [_picture(path, "user", reader) for path in _paths(message.get("files") or [])]
    text = str(message.get("text") or "").strip()
    if text:
        new.append(Text(text, "user"))
    if not new:
        raise ValueError("the message is empty; write something, or show a picture")
    before = [segment for said in history for segment in _segments(said, reader)] if memory != "nothing" else []
    if memory == "picture":  # as if the user showed it, unless there is a new one
        shown = [segment for segment in before if isinstance(segment, Image)][-1:]
        before = [] if isinstance(new[0], Image) else [replace(image, target=False, role="user") for image in shown]
    return Document((*before, *new))


class Answer:
    """The assistant's turn as it comes in."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where its pictures go, as files."""
        self.folder = folder
        self._said: list[str | Path] = []
        self._board: Board | None = None

    def take(self, event: Event) -> None:
        """Note what has happened."""
        if event.kind == "text" and event.text:
            if self._said and isinstance(self._said[-1], str):
                self._said[-1] += event.text
            else:
                self._said.append(event.text)
        elif event.kind == "progress":
            self._board = self._board or Board(["picture"])
            self._board.take(event)
        elif event.kind == "image" and event.image is not None:
            self._board = None
            path = self.folder / f"picture-{len(self._said)}.png"
            path.write_bytes(png_bytes(event.image.to_pil()))
            self._said.append(path)

    def messages(self) -> list[Message]:
        """The turn so far; a picture in progress is last, as HTML."""
        found: list[Message] = []
        for said in self._said:
            content = escape(said.strip(), quote=False) if isinstance(said, str) else {"path": str(said)}
            if content:
                found.append({"role": "assistant", "content": content})
        if self._board is not None:
            found.append({"role": "assistant", "content": self._board.html()})
        return found


def _segments(message: Mapping[str, Any], reader: Reader) -> Iterator[Segment]:
    role: Role = "assistant" if message["role"] == "assistant" else "user"
    content = message["content"]
    for item in content if isinstance(content, list) else [content]:
        if isinstance(item, str):
            text = item
        elif item.get("type") == "text":
            text = str(item["text"])
        else:
            yield from (_picture(path, role, reader) for path in _paths([item.get("file", item)]))
            continue
        if role == "assistant":
            if text.startswith(TILES):  # a picture that was stopped
                continue
            text = unescape(text)
        if text.strip():
            yield Text(text, role)


def _paths(files: Sequence[Any]) -> list[str]:
    """Paths of uploaded files, however the page names them."""
    return [file if isinstance(file, str) else str(file["path"]) for file in files]


def _picture(path: str, role: Role, reader: Reader) -> Image:
    picture = open_picture(path)
    if role == "assistant":
        return replace(Image.from_pil(picture, role=role), target=True)
    return replace(reader(picture), role=role)
