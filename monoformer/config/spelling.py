"""The hint for a misspelt word. Knows nothing of what the words mean."""

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """`did you mean 'steps'?` when a known word is near, else what `otherwise` says."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise
