"""Chat templates: what a tokenizer puts around the segments of a conversation, and which of it is learned.

Knows nothing of images or layouts. Invariant: training and prompts read the same rendered text, so a prompt ends with
exactly what stands before an answer in training, whatever a template does only there (Qwen3's `<think>`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest

from monoformer.tokenizer import Follows, Tokenizer

_SENTINEL = 0xE000  # private-use characters mark where segments go in the rendered chat template
_SENTINELS = re.compile("([\ue000-\uf8ff])")
KEPT = 1000
"""Templates kept at a time: a server's clients make up as many sequences of roles as they like."""


@dataclass(frozen=True)
class Run:
    """Text tokens on their way into a layout, all learned or none."""

    ids: list[int]
    labelled: bool


@dataclass(frozen=True)
class Place:
    """Where a segment goes."""

    segment: int
    """Its number; that of the answer to come is the number of segments."""
    blank: bool
    """Whether a blank of the template is the first character of its text (`[/INST] hello` has the token `▁hello`)."""


Pieces = list[list[Run] | Place]
"""A rendered template: its own tokens, and the places of segments between them."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of one tokenizer."""

    tokenizer: Tokenizer
    _rendered: dict[tuple[tuple[str, ...], bool], Pieces] = field(default_factory=dict, compare=False)

    def pieces(self, roles: tuple[str, ...], *, answer: bool) -> Pieces:
        """What stands around segments of these roles; with `answer` up to where the assistant speaks or goes on.

        Raises ValueError when the template refuses such a conversation.
        """
        key = (roles, answer)
        if key not in self._rendered:
            if len(self._rendered) >= KEPT:
                self._rendered.clear()
            self._rendered[key] = self._render(roles, answer=answer)
        return self._rendered[key]

    def before(self, runs: Sequence[object]) -> Follows:
        """What the next text of a conversation stands behind."""
        last = runs[-1] if runs else None
        special = isinstance(last, Run) and last.ids and last.ids[-1] in self.tokenizer.special
        return "special" if special else "text"

    def _render(self, roles: tuple[str, ...], *, answer: bool) -> Pieces:
        speaking = roles[-1] == "assistant"  # an unfinished answer is continued, not answered
        place = chr(_SENTINEL + len(roles) - speaking)
        pieces = _SENTINELS.split(self._opened(roles, place) if answer and not speaking else self._text(roles))
        if answer and pieces[-2:-1] == [place]:
            pieces.pop()  # what closes the assistant's turn
        found: Pieces = []
        for own, mark in zip_longest(pieces[::2], pieces[1::2]):
            blank = bool(mark) and self.tokenizer.begins_with_blank and own.endswith(" ")
            before = found[-1] if found else None
            behind = roles[before.segment] if isinstance(before, Place) else ""
            if text := own[:-1] if blank else own:
                found.append(self._template(text, behind=behind))
            if mark:
                found.append(Place(ord(mark) - _SENTINEL, blank))
        return found

    def _text(self, roles: tuple[str, ...], *, answer: bool = False) -> str:
        messages = [
            {"role": role, "content": "".join(chr(_SENTINEL + index) for index, _ in group)}
            for role, group in groupby(enumerate(roles), key=lambda pair: pair[1])
        ]
        return self.tokenizer.render(messages, answer=answer)

    def _opened(self, roles: tuple[str, ...], place: str) -> str:
        """Up to where an answer would stand; as the template says it itself where it has no place for one."""
        try:
            text = self._text((*roles, "assistant"))
        except ValueError:
            text = ""
        return text if place in text else self._text(roles, answer=True)

    def _template(self, piece: str, *, behind: str) -> list[Run]:
        """The template's own tokens behind a segment of that role; up to what closes an answer they are learned."""
        ids = self.tokenizer.encode_template(piece, follows="text" if behind else "nothing")
        closes = [index for index, token in enumerate(ids) if token in self.tokenizer.stops]
        learned = closes[0] + 1 if behind == "assistant" and closes else 0
        runs = (Run(ids[:learned], labelled=True), Run(ids[learned:], labelled=False))
        return [run for run in runs if run.ids]
