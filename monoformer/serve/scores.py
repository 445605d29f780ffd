"""Log-probabilities in the two forms of OpenAI's interfaces.

Knows nothing of models. Invariant: all numbers are finite, which JSON needs.
"""

from collections.abc import Mapping, Sequence

from monoformer.generate.text import Score
from monoformer.serve.answers import Likely, Scored, Scores, TextScores

LEAST = -9999.0
"""What stands for the logarithm of nothing."""


def chat_scores(scores: Sequence[Score], words: Mapping[int, bytes]) -> Scores:
    """Of the tokens of a chat's answer."""
    return Scores(content=[_scored(score, words) for score in scores])


def text_scores(scores: Sequence[Score], words: Mapping[int, bytes], *, offset: int) -> TextScores:
    """Of the tokens of a plain text that begins at `offset`."""
    texts = [words[score.token].decode(errors="replace") for score in scores]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    return TextScores(
        tokens=texts,
        token_logprobs=[max(LEAST, score.log_probability) for score in scores],
        top_logprobs=[
            {words[token].decode(errors="replace"): max(LEAST, log) for token, log in score.top} for score in scores
        ],
        text_offset=offsets,
    )


def _scored(score: Score, words: Mapping[int, bytes]) -> Scored:
    own = _likely(score.token, score.log_probability, words)
    top = [_likely(token, log, words) for token, log in score.top]
    return Scored(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _likely(token: int, log: float, words: Mapping[int, bytes]) -> Likely:
    word = words[token]
    return Likely(token=word.decode(errors="replace"), logprob=max(LEAST, log), bytes=list(word))
