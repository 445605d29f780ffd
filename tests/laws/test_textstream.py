"""Tokens to text as they come: what is told, put together, is the whole decoded at once; stop strings cut exactly."""

from collections.abc import Callable, Sequence
from random import Random

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from monoformer.generate.textstream import TextStream
from tests import tiny

Decode = Callable[[Sequence[int]], str]
T = tiny.tokenizer()
WORDS = ("red", " circle", "the", " ", "  ", "中国", "一个红色的圆", "😀", "👩‍🎨", "é", "ß", "\ufffd", "\n", "!")


def pieces() -> tuple[list[str], Decode]:
    """SentencePiece's form, as Llama 2 has it: blanks in the entries, and bytes for what is none."""
    entries = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁red", "red", "▁a", "s", "中", "▁圆"]
    backend = Backend(models.BPE({entry: n for n, entry in enumerate(entries)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return entries, backend.decode


def told(tokens: Sequence[int], decode: Decode, stop: Sequence[str] = ()) -> str:
    """All that a stream tells."""
    stream, said = TextStream(stop, decode), ""
    for token in tokens:
        delta, stopped = stream.push(token)
        said += delta
        if stopped:
            return said
    return said + stream.finish()


def test_text_streams_hold_back_what_may_still_change() -> None:
    stream = TextStream(("stop!",), lambda tokens: bytes(tokens).decode(errors="replace"))
    pushed = [(bytes([byte]).decode("latin-1"), stream.push(byte)) for byte in "go staé st".encode()]
    assert [said for _, (said, _) in pushed] == ["g", "o", " ", "", "", "sta", "", "é", " ", "", ""]
    assert stream.finish() == "st"
    for byte in b"a sto":
        stream.push(byte)
    assert [stream.push(byte) for byte in b"p!"] == [("", False), ("", True)]


@pytest.mark.parametrize("seed", range(4))
def test_any_tokens_are_told_as_the_whole_is_decoded(seed: int) -> None:
    random = Random(seed)
    ordinary = sorted({*range(T.size)} - {*T.special})
    for _ in range(60):
        said = "".join(random.choices(WORDS, k=random.randint(1, 12)))
        anything = random.choices(ordinary, k=random.randint(1, 30))
        for tokens in (T.encode(said), anything, [*T.encode(said)[1:], *anything, *T.encode(said)]):
            assert told(tokens, T.decode) == T.decode(tokens)


@pytest.mark.parametrize("seed", range(4))
def test_blanks_and_bytes_of_sentencepiece_are_told_as_the_whole_is_decoded(seed: int) -> None:
    entries, decode = pieces()
    random, plain = Random(seed), [n for n, entry in enumerate(entries) if not entry.startswith("<")]
    for _ in range(100):
        tokens: list[int] = []
        for _ in range(random.randint(1, 20)):
            if random.random() < 0.6:
                tokens.append(random.choice(plain))
            else:
                tokens += [1 + byte for byte in random.choice(("国", "😀", "é", "~", "国圆")).encode()]
        assert told(tokens, decode) == decode(tokens)
    broken = [1 + byte for byte in "中😀".encode()[:-1]]
    assert told([*broken, plain[2]], decode).startswith("中"), "what was told stays"
    assert told([*broken, plain[2]], decode).endswith(" red")


@pytest.mark.parametrize("seed", range(4))
def test_stop_strings_cut_exactly_wherever_pieces_end(seed: int) -> None:
    random = Random(seed)
    for _ in range(100):
        said = "".join(random.choices(WORDS[:-3], k=random.randint(2, 12)))
        tokens, stops = T.encode(said), []
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(said))
            stops.append(said[at : at + random.randint(1, 6)] + random.choice(("", "", "☃")))
        whole = (T.decode(tokens[:count]).rstrip("\ufffd") for count in range(1, len(tokens) + 1))
        cuts = (
            [text.index(stop) for stop in stops if stop in text] for text in whole
        )  # the first one that is complete
        assert told(tokens, T.decode, stops) == said[: min(next(filter(None, cuts), [len(said)]))], (said, stops)


def test_a_long_text_is_not_decoded_again_and_again() -> None:
    seen = 0

    def counted(tokens: Sequence[int]) -> str:
        nonlocal seen
        seen += len(tokens)
        return T.decode(tokens)

    broken = [*T.encode("中")[:1]] * 300  # a model that writes halves of characters only
    for tokens in (T.encode("the red circle 一个红色的圆 " * 60), broken):
        seen = 0
        assert told(tokens, counted) == T.decode(tokens)
        assert seen < 60 * len(tokens)
