"""The next token of every writing session: one pass of the text head, one wait for the device.

Knows nothing of slots or of what follows from a token. Invariant: special tokens other than boi and those that end an
answer are never chosen.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monoformer.generate.choice import choose_answer, likelihoods
from monoformer.generate.network import Network
from monoformer.generate.passes import text_logits
from monoformer.generate.session import Event, Request, Session
from monoformer.generate.text import Score, adjust, choose_tokens, score_tokens
from monoformer.sequence import Sequencer


class Writer:
    """What turns hidden states into tokens for one model."""

    def __init__(self, network: Network, sequencer: Sequencer) -> None:
        self.network, self.sequencer, self.tokenizer = network, sequencer, sequencer.tokenizer
        tokenizer = sequencer.tokenizer
        vocabulary = network.model.config.vocabulary
        written = {*range(tokenizer.size)} - {*tokenizer.special} | tokenizer.stops | {tokenizer.boi}
        self.unwritable = torch.tensor([token not in written for token in range(vocabulary)], device=network.device)
        """bool (V,)."""

    def check(self, request: Request) -> None:
        """Refuse tokens that can never be written, and what can never be chosen."""
        biased = [token for token, _ in request.settings.logit_bias]
        if not biased:
            return
        size = len(self.unwritable)
        wrong = sorted(token for token in biased if token >= size or bool(self.unwritable[token]))
        if wrong:
            raise ValueError(f"generate.logit_bias names {wrong[0]}, which is no token that can be written")

    def longest_answer(self, request: Request) -> int:
        """Tokens of the longest of the given answers; 0 without any."""
        return max((len(tokens) for tokens in self._answers(request)), default=0)

    @torch.no_grad()
    def choose(self, sessions: Sequence[Session], hidden: Tensor, may_draw: Sequence[bool]) -> list[int]:
        """A token for each session from the states (N, D) of their last ones; -1 where the numbers are broken."""
        raw = text_logits(self.network, hidden)
        logits = raw.clone()
        for row, session in enumerate(sessions):
            settings = session.request.settings
            seen = self._seen(session) if settings.repetition_penalty != 1 else None
            if seen is not None or settings.logit_bias:
                logits[row] = adjust(raw[row], settings, seen=seen)
        logits.masked_fill_(self.unwritable, -torch.inf)
        closed = torch.tensor([not may for may in may_draw]).to(logits.device)
        logits[:, self.tokenizer.boi].masked_fill_(closed, -torch.inf)
        each = [session.request.settings for session in sessions]
        tokens = choose_tokens(logits, each, [session.random for session in sessions])
        self._score(sessions, raw, tokens)
        for session, token in zip(sessions, tokens, strict=True):
            if session.seen is not None and token >= 0:
                session.seen[token] = True
        return tokens

    def prompt(self, session: Session, scores: Sequence[Score]) -> Event:
        """What is told of a prompt; its text, too, where only its tokens were given."""
        text = self.tokenizer.decode(session.request.tokens)
        return Event(session=session.number, kind="prompt", text=text, scores=tuple(scores))

    def answer(self, session: Session, hidden: Tensor) -> Event | None:
        """What is told of the answer among the given ones: it, and all likelihoods. None: the numbers are broken."""
        assert session.context is not None, "the session has ended"
        found = likelihoods(self.network, session.context, hidden, self._answers(session.request))
        temperature = session.request.settings.temperature
        chosen = choose_answer(found, temperature=temperature, generator=session.random)
        if chosen < 0:
            return None
        text, logs = session.request.choices[chosen], tuple(found.tolist())
        return Event(session=session.number, kind="text", text=text, likelihoods=logs)

    def _answers(self, request: Request) -> list[list[int]]:
        """With their end: what begins like another answer must also end where it ends."""
        return self.sequencer.answers(request.document, request.choices)

    def _seen(self, session: Session) -> Tensor:
        """Which ordinary tokens the text so far has, bool (V,)."""
        if session.seen is None:
            special = {*self.tokenizer.special}
            found = sorted({*session.layouts[0].ids, *session.tokens} - special)
            seen = torch.zeros(self.network.model.config.vocabulary, dtype=torch.bool)
            seen[found] = True
            session.seen = seen.to(self.network.device)
        return session.seen

    def _score(self, sessions: Sequence[Session], raw: Tensor, tokens: Sequence[int]) -> None:
        """Note the log-probabilities of the tokens where they are wanted."""
        rows = [n for n, s in enumerate(sessions) if s.request.log_probabilities is not None and tokens[n] >= 0]
        if not rows:
            return
        wanted = [sessions[row].request.log_probabilities or 0 for row in rows]
        found: list[Score] = score_tokens(raw[rows], [tokens[row] for row in rows], top=max(wanted))
        for row, score, top in zip(rows, found, wanted, strict=True):
            sessions[row].scores.append(replace(score, top=score.top[:top]))
