"""The hint for a misspelt word. Knows nothing of what the words mean."""

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str], *, otherwise: str, cutoff: float = 0.6) -> str:
    """`did you mean 'steps'?` when a known word is near, else what `otherwise` says; `cutoff` as for `nearest`."""
    near = nearest(word, known, cutoff=cutoff)
    return otherwise if near is None else f"did you mean {near!r}?"


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word most like `word`; None where none has at least `cutoff` (0 to 1) of its characters in order."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)
