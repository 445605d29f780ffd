"""Tokens to text as they come.

Knows nothing of sessions. A token is decoded with the few before it whose text may still change, never with the whole
text again. Invariant: all that is told, put together, is what decoding all tokens at once gives, up to a stop string;
but behind SentencePiece's bytes that end within a character, since those of whole characters before them were told.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

Decode: TypeAlias = Callable[[Sequence[int]], str]

BROKEN = "\ufffd"
"""What an unfinished character is decoded to."""
OPEN = 8
"""Tokens from which on an unfinished character is sought behind the broken ones: it has at most four bytes."""


class TextStream:
    """Holds back what may still change: part of a character, or of a stop string."""

    def __init__(self, stop: Sequence[str], decode: Decode) -> None:
        self.stop = tuple(s for s in stop if s)
        self._decode = decode
        self._known: list[int] = []  # tokens whose text is final; they tell whether a blank goes before the next ones
        self._before = ""  # their text
        self._open: list[int] = []  # tokens behind them whose text may change
        self._taken = 0  # characters of the open ones' text that may not
        self._held = ""  # text that is final, but may begin a stop string

    def push(self, token: int) -> tuple[str, bool]:
        """What is new and safe to show, and whether a stop string came, which is left out with all behind it."""
        self._open.append(token)
        text = self._text(self._open)
        final = text.rstrip(BROKEN)
        self._held += final[self._taken :]
        self._taken = max(self._taken, len(final))
        if text and final == text:
            self._settle(len(self._open), text)
        elif len(self._open) >= OPEN:
            self._settle_most(text)
        found = [at for at in (self._held.find(s) for s in self.stop) if at >= 0]
        if found:
            said, self._held = self._held[: min(found)], ""
            return said, True
        safe = self._safe()
        said, self._held = self._held[:safe], self._held[safe:]
        return said, False

    def finish(self) -> str:
        """What was held back, now that nothing more comes."""
        said = self._held + self._text(self._open)[self._taken :]
        self._known, self._open, self._before, self._taken, self._held = [], [], "", 0, ""
        return said

    def _text(self, tokens: Sequence[int]) -> str:
        """The text of tokens behind the known ones."""
        if not tokens:
            return ""
        both = self._decode([*self._known, *tokens])
        if both.startswith(self._before):
            return both[len(self._before) :]
        return self._decode(tokens)  # bytes that broke the whole characters before them

    def _settle(self, count: int, text: str) -> None:
        """The first open tokens have their final text."""
        self._known, self._open = self._open[:count], self._open[count:]
        self._before, self._taken = self._decode(self._known), max(0, self._taken - len(text))

    def _settle_most(self, text: str) -> None:
        """Many tokens end in broken characters: only the last of these may still become a whole one."""
        for count in range(len(self._open) - 1, len(self._open) - 4, -1):
            first = self._text(self._open[:count])
            if first + self._decode(self._open[count:]) == text:  # no character goes across
                self._held += first[self._taken :]
                self._taken = max(self._taken, len(first))
                self._settle(count, first)
                return

    def _safe(self) -> int:
        """Characters of what is held that cannot begin a stop string."""
        end = len(self._held)
        for s in self.stop:
            for length in range(min(len(s) - 1, end), 0, -1):
                if self._held.endswith(s[:length], 0, end):
                    end -= length
                    break
        return end
