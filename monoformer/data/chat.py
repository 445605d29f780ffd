"""Conversations from the forms that people keep them in, as chats.

Knows nothing of tokens or templates. Invariant: a conversation ends with an answer; the user's pictures are context,
the assistant's are targets.
"""

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from monoformer.config.sources import ChatData, InterleavedData, StreamData
from monoformer.data.pictures import picture_later
from monoformer.data.rows import Rows
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Order, Split
from monoformer.document import Document, Image, Role, Segment, Text

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
"""What the forms call those who speak."""
PAIRS = (("instruction", "response"), ("instruction", "output"), ("question", "answer"), ("prompt", "completion"),
         ("prompt", "response"))  # fmt: skip
"""Names of a question and its answer in rows that hold one pair."""
LISTS = ("messages", "conversations", "data")
"""Names of the list of messages in the other rows."""
PLACE = "<image>"
"""Where a picture goes in LLaVA's text."""


class Picture(NamedTuple):
    """A picture that a row names: a path, a data URL, or bytes in an object."""

    content: Any


class Turn(NamedTuple):
    """What somebody says at a time."""

    role: Role
    parts: list[str | Picture]


class Chats:
    """Conversations in files, random access."""

    def __init__(self, config: ChatData, *, split: Split = "train", seed: int = 0) -> None:
        self._config = config
        self._rows = Rows(config.files)
        self.rows = self._rows.split(split, holdout=config.holdout)
        self._order = Order(seed, len(self.rows))

    def document(self, index: int) -> Document:
        """Document number `index` of the endless shuffled stream; BadDocument where the row is no conversation."""
        row, name, folder = self._rows.read(self.rows[self._order.item(index)])
        return read_chat(row, self._config, name=name, folder=folder)


def read_chat(row: Mapping[str, Any], config: ChatData | StreamData, *, name: str, folder: Path) -> Document:
    """The conversation in a row; `name` says where it stands. BadDocument where there is none."""
    turns = finished(read_turns(row, name), characters=config.characters)
    if not any(turn.role == "assistant" for turn in turns):
        raise BadDocument(f"{name} has no answer of the assistant", cause="no answer")
    segments: list[Segment] = []
    for turn in turns:
        if not turn.parts:
            raise BadDocument(f"{name} has an empty message of the {turn.role}", cause="empty message")
        for part in turn.parts:
            if isinstance(part, str):
                segments.append(Text(part, turn.role))
            else:
                picture = find_named(config, part.content, name=name, folder=folder)
                segments.append(replace(picture, role=turn.role, target=turn.role == "assistant"))
    return Document(tuple(segments))


def read_turns(row: Mapping[str, Any], name: str) -> list[Turn]:
    """The turns of a row in any of the forms; BadDocument where it is none of them."""
    turns: list[Turn] = []
    for who, content in _said(row, name):
        role = read_role(who, name)
        parts = [] if role == "system" and content is None else _parts(content, name)
        if role == "system" and not parts:  # many a form has the field and leaves it empty
            continue
        if turns and turns[-1].role == role:  # two messages in turn of the same one
            _go_on(turns[-1].parts, parts)
        else:
            turns.append(Turn(role, parts))
    system = _parts(row["system"], name) if isinstance(row.get("system"), str) else []
    if system and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", system))
    return _placed(turns, row, name)


def _go_on(said: list[str | Picture], parts: list[str | Picture]) -> None:
    """Another message of the same one: its words begin a line."""
    if said and parts and isinstance(parts[0], str):
        before = said.pop() if isinstance(said[-1], str) else ""
        parts = [f"{before}\n{parts[0]}", *parts[1:]]
    said.extend(parts)


def _said(row: Mapping[str, Any], name: str) -> list[tuple[Any, Any]]:
    """Who says what in a row, as it stands there."""
    for form in ("messages", "conversations"):
        if isinstance(row.get(form), list):
            return [
                (_either(entry, "role", "from"), _either(entry, "content", "value"))
                for entry in _objects(row[form], name)
            ]
    if isinstance(row.get("data"), list):
        return [("assistant" if at % 2 else "user", text) for at, text in enumerate(row["data"])]
    for question, answer in PAIRS:
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            more = row.get("input")
            asked = f"{row[question]}\n{more}" if isinstance(more, str) and more else row[question]
            pairs = [*_history(row, name), (asked, row[answer])]
            return [(who, text) for pair in pairs for who, text in zip(("user", "assistant"), pair, strict=True)]
    keys = ", ".join(map(str, row))
    raise BadDocument(f"{name} is no conversation: it has the fields {keys}", cause="no conversation")


def _history(row: Mapping[str, Any], name: str) -> list[tuple[Any, Any]]:
    """The questions and answers before the last ones."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        say = f"{name} has a history that is no list of questions with their answers, but {history!r:.80}"
        raise BadDocument(say, cause="wrong type")
    return [(question, answer) for question, answer in history]


def _either(entry: Mapping[str, Any], name: str, other: str) -> Any:
    """What an object has under one of two names; a table fills up with None the one that is missing."""
    return entry.get(other) if entry.get(name) is None else entry[name]


def check_form(columns: Collection[str]) -> None:
    """ValueError where rows of these columns are conversations in none of the forms."""
    if not any({*pair} <= {*columns} for pair in PAIRS) and not {*LISTS} & {*columns}:
        pairs = "; ".join(" and ".join(pair) for pair in PAIRS)
        raise ValueError(
            f"data.chat needs the column {', '.join(LISTS)}, or two such as {pairs}, but the data has "
            f"{', '.join(columns)}; rename one, or leave data.chat out"
        )


def read_role(who: Any, name: str) -> Role:
    """Who speaks, by any of its names."""
    if not isinstance(who, str) or who not in ROLES:
        raise BadDocument(f"{name} has the unknown role {who!r:.40}", cause="unknown role")
    return ROLES[who]


def finished(turns: list[Turn], *, characters: int) -> list[Turn]:
    """The turns up to the last answer; above 0, up to the last within so many characters, or the first at all."""
    last, length = 0, 0
    for place, turn in enumerate(turns, start=1):
        length += sum(len(part) for part in turn.parts if isinstance(part, str))
        if turn.role == "assistant" and not (characters and last and length > characters):
            last = place
    return turns[:last]


def find_named(config: ChatData | InterleavedData | StreamData, content: Any, *, name: str, folder: Path) -> Image:
    """The picture that a row names, to be read when it is needed; paths are relative to the configured folder, else to
    the row's file.
    """
    if isinstance(content, dict):
        content = content.get("bytes") or content.get("path")
    if isinstance(content, str) and content.startswith("data:"):
        try:
            content = base64.b64decode(content.partition(",")[2], validate=True)
        except ValueError as error:
            raise BadDocument(f"{name} has a damaged data URL ({error})", cause="broken picture") from error
    if not isinstance(content, str | bytes) or not content:
        raise BadDocument(f"{name} has no picture where one should be, but {content!r:.80}", cause="no picture")
    if isinstance(content, str) and "://" in content:
        raise BadDocument(f"{name} names the picture {content:.80}, which is not here", cause="picture behind a link")
    if isinstance(content, bytes):
        return picture_later(config, content, name=f"in {name}")
    path = Path(config.images or folder) / content
    return picture_later(config, path, name=f"{path} of {name}")


def _objects(entries: list[Any], name: str) -> list[dict[str, Any]]:
    if not all(isinstance(entry, dict) for entry in entries):
        raise BadDocument(f"{name} has messages that are no objects", cause="wrong type")
    return entries


def _parts(content: Any, name: str) -> list[str | Picture]:
    """A message's content: a string, or OpenAI's list of texts and pictures; empty ones are left out."""
    if isinstance(content, str):
        return [content.strip()] if content.strip() else []
    if not isinstance(content, list):
        raise BadDocument(f"{name} has a message that is no text, but {content!r:.80}", cause="wrong type")
    parts: list[str | Picture] = []
    for part in _objects(content, name):
        if part.get("type") == "text":
            parts += _parts(part.get("text"), name)
        elif part.get("type") in ("image", "image_url"):
            url = part["image"] if part.get("image_url") is None else part["image_url"]
            parts.append(Picture(url.get("url", url) if isinstance(url, dict) else url))
        else:
            raise BadDocument(f"{name} has a part of the unknown type {part.get('type')!r:.40}", cause="wrong type")
    return parts


def _placed(turns: list[Turn], row: Mapping[str, Any], name: str) -> list[Turn]:
    """LLaVA's pictures where the text has their places; a single one without a place comes first."""
    given = row.get("images") or row.get("image")
    if not given:
        return turns
    pictures = [Picture(content) for content in (given if isinstance(given, list) else [given])]
    places = sum(part.count(PLACE) for turn in turns for part in turn.parts if isinstance(part, str))
    users = [turn for turn in turns if turn.role == "user"]
    if not places and len(pictures) == 1 and users:
        users[0].parts.insert(0, pictures[0])
        return turns
    if places != len(pictures):
        say = f"{name} has {len(pictures)} pictures, but {places} places for them ({PLACE})"
        raise BadDocument(say, cause="pictures without places")
    following = iter(pictures)
    return [Turn(turn.role, list(_filled(turn.parts, following))) for turn in turns]


def _filled(parts: Sequence[str | Picture], pictures: Iterator[Picture]) -> Iterator[str | Picture]:
    for part in parts:
        if not isinstance(part, str):
            yield part
            continue
        for at, piece in enumerate(part.split(PLACE)):
            if at:
                yield next(pictures)
            if piece.strip():
                yield piece.strip()
