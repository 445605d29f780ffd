"""The engine: sessions that write and draw, advanced together.

    engine.add(request) -> session number;  engine.step() -> events;  engine.run(requests) -> results

A session reads its prompt piece by piece, writes token by token, switches to a picture when the opening token comes,
denoises only the picture's tokens against its cached prefix, reads the clean picture into the cache, and writes on. At
every step all prompts share one pass, all writing sessions another, and all drawing sessions one a picture size (on a
CPU, where larger passes are no faster, the oldest that fill one). Beside large ones every text gets several tokens.
Requests wait, in order, for free slots of the cache. Invariant: what a session makes depends on its own request and
seed, never on its neighbours (up to the last bits of matrix products), and what fails in it ends it alone; a half-noisy
picture is never in the cache.
"""

from collections import deque
from functools import partial

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder
from monoformer.document import Document
from monoformer.generate.admission import Admission, nulls, picture_tokens
from monoformer.generate.artist import Artist
from monoformer.generate.network import build_network
from monoformer.generate.passes import Context, attempt, explained, guarded, read
from monoformer.generate.prefill import Reading
from monoformer.generate.reader import Reader
from monoformer.generate.session import Event, Reason, Request, Session
from monoformer.generate.turns import Shared
from monoformer.pretrained import Pretrained
from monoformer.vision import VisionEncoder

BROKEN = "the model's numbers are not finite for this request"


class Engine(Shared):
    """Holds the cache and the sessions of one model."""

    def __init__(
        self,
        pretrained: Pretrained,
        autoencoder: Autoencoder,
        *,
        vision: VisionEncoder | None = None,
        slots: int = 32,
        budget: int = 0,
        deterministic: bool = False,
        compile: bool = False,
    ) -> None:
        """`slots` contexts fit at once (a guided picture takes two); each holds the model's context length.

        `budget`: most tokens of prompts read in one step (0: 512 on a CPU, else 4096), longer ones in pieces of it.
        `deterministic` pads every pass to fixed shapes: a request then has the same bits alone and among others.
        `compile` compiles the pass that reads written tokens, at once: `network.decoder.warmed` tells what it took.
        """
        if slots < 2:
            raise ValueError(f"an engine needs at least 2 slots (a guided picture takes two), but has {slots}")
        if budget < 0:
            raise ValueError(f"an engine's budget must be at least 1 token, or 0 for its own, but is {budget}")
        self.tokenizer, self.config = pretrained.tokenizer, pretrained.model.config
        self.sequencer = pretrained.sequencer()
        self.network = build_network(
            pretrained, autoencoder, vision=vision, slots=slots, deterministic=deterministic, compile=compile
        )
        self.reader = Reader(self.network, self.sequencer, budget=budget)
        super().__init__(Admission(self.network, self.sequencer))
        self.writer, self.artist = self.admission.writer, Artist(self.network, self.sequencer)
        self.waiting: deque[Session] = deque()
        self.active: list[Session] = []
        self._count = 0
        self._events: list[Event] = []

    @property
    def free(self) -> list[int]:
        """Slots of the cache that nobody uses."""
        return self.reader.slots.free

    def add(self, request: Request | Session) -> int:
        """Queue a request, or one that is open already; its session number. ValueError if it cannot be served."""
        session = self.admission.open(request) if isinstance(request, Request) else request
        session.number = self._count
        self._count += 1
        self.waiting.append(session)
        return session.number

    def step(self) -> list[Event]:
        """Admit who fits; then an evaluation of every drawing, a piece of every prompt, a token of every text."""
        drawing = self.artist.turn([session for session in self.active if session.drawing is not None])
        self._admit()
        self._draw(drawing)
        self._choose(self._read_tokens() + self._read_prompts())
        for _ in range(self.artist.words(drawing)):
            self._choose(self._read_tokens())
        self.active = [session for session in self.active if session.context is not None]
        assert self.active or not self.waiting or self.free, "a slot of the cache was lost"
        events, self._events = self._events, []
        return events

    def reset(self) -> None:
        """Drop all sessions and what the cache holds: a step that broke off leaves nothing to rely on."""
        self.waiting, self.active, self._events = deque(), [], []
        self.reader.reset()
        self.listeners.fail("another call was broken off in the middle of a step, or changed the model; ask again")

    def cancel(self, number: int) -> Event | None:
        """End a session now, between two steps, and free its slots; its last event, None if it had ended already."""
        for session in [*self.waiting, *self.active]:
            if session.number == number:
                self._end(session, "cancelled", flush=False)
                self.waiting = deque(s for s in self.waiting if s is not session)
                self.active = [s for s in self.active if s is not session]
                return self._events.pop()
        return None

    def _admit(self) -> None:
        while self.waiting:
            session = self.waiting[0]
            request, layouts = session.request, session.layouts
            spare = 0 if session.opens else nulls(request)
            if not self.reader.has_room(layouts, spare=spare, shared=session.opens):
                break
            self.waiting.popleft()
            top = request.log_probabilities if request.prompt_log_probabilities else None
            session.readings = [self.reader.start(layout, shared=session.opens, top=top) for layout in layouts]
            session.spare = [self.reader.slots.take() for _ in range(spare)]
            session.slots = [*(reading.context.slot for reading in session.readings), *session.spare]
            session.context = session.readings[0].context
            self.active.append(session)

    def _read_tokens(self) -> list[tuple[Session, Tensor]]:
        """Read the token that each session wrote last, in the cache's order; the states (D,) after them."""
        sessions = sorted((s for s in self.active if s.token is not None), key=lambda s: _open(s).slot)
        written = [(_open(s), _open(s).following(s.token)) for s in sessions if s.token is not None]
        found = attempt(lambda rows: list(read(self.network, *zip(*rows, strict=True))), written)
        states: list[tuple[Session, Tensor]] = []
        for session, (context, layout), state in zip(sessions, written, found, strict=True):
            session.token = None
            if isinstance(state, Exception):
                self._end(session, "error", error=explained(state))
            else:
                self.reader.note(context, layout)
                states.append((session, state))
        return states

    def _read_prompts(self) -> list[tuple[Session, Tensor]]:
        """Read pieces of what is to be read; start the pictures that can begin, and return who can write on."""
        self.reader.step([reading for session in self.active for reading in session.readings])
        ready: list[tuple[Session, Tensor]] = []
        for session in [s for s in self.active if s.readings]:
            error = next((reading.error for reading in session.readings if reading.error is not None), None)
            if error is not None:
                self._end(session, "error", error=error)
            elif all(reading.is_done for reading in session.readings):
                first = session.readings[0]
                if first.top is not None:
                    self._events.append(self.writer.prompt(session, first.scores))
                contexts, session.readings = [reading.context for reading in session.readings], []
                if session.opens:
                    session.opens = False
                    drawing = guarded(self.artist.start, session, contexts)
                    if isinstance(drawing, Exception):
                        self._end(session, "error", error=explained(drawing))
                    else:
                        session.drawing = drawing
                else:
                    assert first.hidden is not None
                    ready.append((session, first.hidden))
        return ready

    def _choose(self, ready: list[tuple[Session, Tensor]]) -> None:
        """The next token, or the chosen answer, of every session whose state (D,) is known."""
        writing: list[tuple[Session, Tensor, bool]] = []
        for session, hidden in ready:
            request, room = session.request, self.config.context - _open(session).length
            if request.choices:
                self._answer(session, hidden)
            elif session.written >= request.settings.max_tokens or room < 1:
                self._end(session, "length")
            else:
                picture = partial(picture_tokens, network=self.network, sequencer=self.sequencer)
                draws = request.want != "text" and room >= picture(request, session.shown()) + 2
                writing.append((session, hidden, draws))
        if writing:
            sessions, states, may_draw = zip(*writing, strict=True)
            tokens = self.writer.choose(sessions, torch.stack(states), may_draw)
            for session, token in zip(sessions, tokens, strict=True):
                self._end_alone(session, guarded(self._take, session, token))

    def _take(self, session: Session, token: int) -> None:
        """What follows from the chosen token."""
        if token < 0:
            return self._end(session, "error", error=BROKEN)
        if token in self.tokenizer.stops:
            return self._end(session, "stop")
        if token == self.tokenizer.boi:
            self._say(session, session.stream.finish())
            return self.artist.open(session, self.reader)
        session.written += 1
        session.tokens.append(token)
        delta, stopped = session.stream.push(token)
        self._say(session, delta)
        if stopped:
            return self._end(session, "stop", flush=False)
        session.token = token
        return None

    def _answer(self, session: Session, hidden: Tensor) -> None:
        """Give one of the answers that the request allows."""
        found = guarded(self.writer.answer, session, hidden)
        if found is None or isinstance(found, Exception):
            return self._end(session, "error", error=BROKEN if found is None else explained(found))
        session.say(found.text)
        self._events.append(found)
        return self._end(session, "stop", flush=False)

    def _say(self, session: Session, delta: str) -> None:
        if not delta and not session.scores:
            return
        session.say(delta)
        scores, session.scores = tuple(session.scores), []
        self._events.append(Event(session=session.number, kind="text", text=delta, scores=scores))

    def _draw(self, sessions: list[Session]) -> None:
        """One evaluation of every picture in progress; what is done is handed over."""
        for session, found in self.artist.advance(sessions):
            if isinstance(found, Exception):
                self._end(session, "error", error=explained(found))
                continue
            self._events.append(self.artist.progress(session))
            if found is not None:
                self._end_alone(session, guarded(self._finish_drawing, session, found))

    def _finish_drawing(self, session: Session, latent: Tensor) -> None:
        """Hand the picture over; unless it was all, it is read clean, as training read it, and writing goes on."""
        image = guarded(self.artist.finish, session, latent)
        if image is None or isinstance(image, Exception):
            return self._end(session, "error", error=BROKEN if image is None else explained(image))
        session.show(image)
        self._events.append(Event(session=session.number, kind="image", image=image))
        if session.request.want == "image":
            return self._end(session, "image")
        session.tokens = []
        context = _open(session)
        session.readings = [Reading(context, self.sequencer.image(image.pixels, position=context.position))]
        return None

    def _end_alone(self, session: Session, found: Exception | None) -> None:
        """End the session where what was done for it failed."""
        if found is not None:
            self._end(session, "error", flush=False, error=explained(found))

    def _end(self, session: Session, reason: Reason, *, flush: bool = True, error: str = "") -> None:
        if flush or session.scores:
            self._say(session, session.stream.finish() if flush else "")
        broken = reason in ("error", "cancelled")  # what it read was not checked
        self.reader.release(session.slots, session.readings, broken=broken)
        session.close()
        made, number, usage = Document(tuple(session.gather())), session.number, session.usage
        self._events.append(Event(session=number, kind="end", reason=reason, made=made, error=error, usage=usage))


def _open(session: Session) -> Context:
    assert session.context is not None, "the session has ended"
    return session.context
