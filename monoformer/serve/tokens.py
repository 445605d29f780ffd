"""The bytes of single tokens: pieces of characters have no text of their own.

Knows byte-level and SentencePiece vocabularies. Invariant: the tokens of an answer, put together, are its bytes.
"""

import re

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
"""The bytes that the characters of a byte-level vocabulary stand for: those that cannot be printed are moved up."""


def token_bytes(piece: str, text: str) -> bytes:
    """Of a token's entry in the vocabulary, which decodes to `text` when it stands alone."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    if "\u2581" in piece:  # SentencePiece's space, of which decoding drops the first
        return piece.replace("\u2581", " ").encode()
    if "\ufffd" in text and all(character in BYTES for character in piece):
        return bytes(BYTES[character] for character in piece)
    return text.encode()
