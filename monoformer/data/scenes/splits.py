"""Which scenes are held out from training: decided by what a scene holds, never by its number.

The rule: a set of kinds of thing is held out if a stable hash of its sorted list says so, about one in ten. Relations,
positions, background and word order do not enter. So all captions that are equivalent, and all edits that only move
a thing, fall on one side; and no training picture, caption, edit result or question shows exactly a held-out set.

Knows nothing of pixels or words. Invariant: frozen once results exist.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from monoformer.data.scenes.world import Kind

Split: TypeAlias = Literal["train", "test"]

HELD_OUT: Final = 10
"""One in this many is held out."""


def split_of_text(text: str) -> Split:
    """The split of a text by its stable hash, salted so that each name ("red circle") occurs alone in training too."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"scenes198").digest()
    return "test" if int.from_bytes(digest, "little") % HELD_OUT == 0 else "train"


def split_of(kinds: Iterable[Kind]) -> Split:
    """The split of the scenes that hold exactly these things, in any order."""
    return split_of_text(", ".join(f"{kind.size} {kind.colour} {kind.shape}" for kind in sorted(kinds)))
