"""Log-probabilities in the two forms of OpenAI's interfaces.

Knows nothing of models. Invariant: all numbers are finite, which JSON needs.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence

from monoformer.generate.text import Score
from monoformer.serve.answers import Likely, Scored, Scores, TextScores

LEAST = -9999.0
"""What stands for the logarithm of nothing."""


def chat_scores(scores: Sequence[Score], words: Mapping[int, bytes]) -> Scores:
    """Of the tokens of a chat's answer."""
    return Scores(content=[_scored(score, words) for score in scores])


def text_scores(
    scores: Sequence[Score], words: Mapping[int, bytes], *, offset: int, prompt: str | None = None
) -> TextScores:
    """Of the tokens of a plain text that begins at `offset`; with `prompt`, the first ones are that text's.

    What no token precedes has no log-probability.
    """
    pieces = [words[score.token] for score in scores]
    spoken = next((place for place, piece in enumerate(pieces) if piece), None)
    if prompt is not None and spoken is not None and not prompt.startswith(" "):
        pieces[spoken] = pieces[spoken].removeprefix(b" ")  # which SentencePiece puts before a text
    follows = [prompt is None or place > 0 for place in range(len(scores))]
    return TextScores(
        tokens=[piece.decode(errors="replace") for piece in pieces],
        token_logprobs=[max(LEAST, s.log_probability) if f else None for s, f in zip(scores, follows, strict=True)],
        top_logprobs=[_likeliest(s, words) if f else None for s, f in zip(scores, follows, strict=True)],
        text_offset=list(_offsets(pieces, offset)),
    )


def _likeliest(score: Score, words: Mapping[int, bytes]) -> dict[str, float]:
    """Of tokens that look alike, as parts of characters do, the likelier one stays."""
    found: dict[str, float] = {}
    for token, log in score.top:
        found.setdefault(words[token].decode(errors="replace"), max(LEAST, log))
    return found


def _offsets(pieces: Sequence[bytes], offset: int) -> Iterator[int]:
    """How many characters precede each piece, which may be a part of one."""
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        yield offset
        offset += len(decoder.decode(piece))


def _scored(score: Score, words: Mapping[int, bytes]) -> Scored:
    own = _likely(score.token, score.log_probability, words)
    top = [_likely(token, log, words) for token, log in score.top]
    return Scored(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _likely(token: int, log: float, words: Mapping[int, bytes]) -> Likely:
    word = words[token]
    return Likely(token=word.decode(errors="replace"), logprob=max(LEAST, log), bytes=list(word))
