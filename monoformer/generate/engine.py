"""The engine: sessions that write and draw, advanced together.

    engine.add(request) -> session number;  engine.step() -> events;  engine.run(requests) -> results

A session is prefilled, writes token by token, switches to a picture when the opening token comes, denoises only the
picture's tokens against its cached prefix, reads the clean picture into the cache, and writes on. At every step all
writing sessions share one pass, and all drawing sessions one pass a picture size. Requests wait, in order, for a free
slot of the cache. Invariant: what a session makes depends on its own request and seed, never on its neighbours (up to
the last bits of matrix products); a half-noisy picture is never in the cache.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder, check_fits
from monoformer.batch import Layout
from monoformer.config.generate import check_sampler
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Image, Text
from monoformer.generate.image import Drawing, check_channels, null_document
from monoformer.generate.passes import Context, Network, denoise, read
from monoformer.generate.session import Event, Reason, Request, Session, picture_size
from monoformer.generate.text import TextStream, choose_token
from monoformer.pretrained import Pretrained
from monoformer.randomness import generator
from monoformer.vision import VisionEncoder, check_sees


class Engine:
    """Holds the cache and the sessions of one model."""

    def __init__(
        self,
        pretrained: Pretrained,
        autoencoder: Autoencoder,
        *,
        vision: VisionEncoder | None = None,
        slots: int = 32,
    ) -> None:
        """`slots` contexts fit at once (a guided picture takes two); each holds the model's context length."""
        if slots < 2:
            raise ValueError(f"an engine needs at least 2 slots (a guided picture takes two), but has {slots}")
        check_fits(autoencoder, pretrained.model.config)
        check_sees(vision, pretrained.model.config)
        self.tokenizer, self.config = pretrained.tokenizer, pretrained.model.config
        self.sequencer = pretrained.sequencer()
        self.network = Network(
            model=pretrained.model,
            objective=build_objective(pretrained.diffusion),
            autoencoder=autoencoder,
            cache=pretrained.model.cache(slots, self.config.context),
            vision=vision,
        )
        self.free = list(range(slots))
        self.waiting: deque[Session] = deque()
        self.active: list[Session] = []
        self._count = 0
        self._events: list[Event] = []
        special = torch.tensor([*self.tokenizer.special, *range(self.tokenizer.size, self.config.vocabulary)])
        self._unwritable = special[(special != self.tokenizer.eos) & (special != self.tokenizer.boi)]

    def add(self, request: Request) -> int:
        """Queue a request; its session number. Raises ValueError for one that cannot be served."""
        if request.want != "text":  # refuse now what would otherwise stop every session when the drawing begins
            picture_size(request.document, request.size, self.config)
            check_sampler(request.settings, self.network.objective.config)
            check_channels(request.settings, self.config)
        request = replace(request, document=request.document.with_own_targets())
        layout = self.sequencer.prompt(request.document, opening="image" if request.want == "image" else None)
        picture = self._picture_tokens(request.document, request) if request.want == "image" else 0
        if len(layout) + picture + 1 > self.config.context:
            raise ValueError(
                f"the prompt has {len(layout)} tokens, too many for the model's context of {self.config.context}"
                f"{f' and a picture of {picture}' if picture else ''}; shorten it"
            )
        session = Session(
            self._count, request, layout, generator(request.settings.seed, "text"), TextStream(request.settings.stop)
        )
        self._count += 1
        self.waiting.append(session)
        return session.number

    def step(self) -> list[Event]:
        """Admit who fits, then advance every drawing session by an evaluation and every writing one by a token."""
        self._events = []
        drawing = [session for session in self.active if session.drawing is not None]
        writing = [session for session in self.active if session.drawing is None]
        writing += self._admit()
        self._draw(drawing)
        self._write(writing)
        self.active = [session for session in self.active if session.context is not None]
        assert self.active or not self.waiting or self.free, "a slot of the cache was lost"
        return self._events

    def run(self, requests: Sequence[Request]) -> list[Document]:
        """Serve all requests; what each one made, in order, as documents of the new segments."""
        waiting = len(self.waiting)
        try:
            sessions = {self.add(request): request for request in requests}
        except ValueError:
            while len(self.waiting) > waiting:  # all or none
                self.waiting.pop()
            raise
        made: dict[int, Document] = {}
        while len(made) < len(sessions):
            for event in self.step():
                if event.kind == "end" and event.session in sessions and event.made is not None:
                    made[event.session] = event.made
        return [made[number] for number in sessions]

    def _admit(self) -> list[Session]:
        admitted: list[Session] = []
        while self.waiting:
            request = self.waiting[0].request
            needed = 1 if request.want == "text" or request.settings.guidance == 1 else 2
            if len(self.free) < needed:
                break
            session = self.waiting.popleft()
            session.slots = [self.free.pop() for _ in range(needed)]
            session.context = Context(session.slots[0])
            admitted.append(session)
        self.active += admitted
        return admitted

    def _write(self, sessions: list[Session]) -> None:
        """Read what each session has next; then it opens a picture or chooses its next token."""
        if not sessions:
            return
        hidden = read(self.network, [_open(s) for s in sessions], [s.layout for s in sessions])
        opening = [s for s in sessions if s.layout.ids[-1] == self.tokenizer.boi]
        writing = [i for i, s in enumerate(sessions) if s.layout.ids[-1] != self.tokenizer.boi]
        self._start_drawings(opening)
        if writing:
            logits = self.network.model.text(hidden[writing]).float()
            for row, index in zip(logits, writing, strict=True):
                self._choose(sessions[index], row)

    def _choose(self, session: Session, logits: Tensor) -> None:
        settings, context = session.request.settings, _open(session)
        room = self.config.context - context.length
        if session.written >= settings.max_tokens or room < 1:
            return self._end(session, "length")
        logits = logits.index_fill(0, self._unwritable.to(logits.device), -torch.inf)
        if session.request.want == "text" or room < self._picture_tokens(session.so_far(), session.request) + 2:
            logits[self.tokenizer.boi] = -torch.inf
        token = choose_token(logits, settings, session.random)
        if token == self.tokenizer.eos:
            return self._end(session, "stop")
        if token == self.tokenizer.boi:
            self._say(session, session.stream.finish(self.tokenizer.decode(session.tokens)))
        else:
            session.written += 1
            session.tokens.append(token)
            delta, stopped = session.stream.push(self.tokenizer.decode(session.tokens))
            self._say(session, delta)
            if stopped:
                return self._end(session, "stop", flush=False)
        session.layout = Layout(next_position=context.position)
        session.layout.add_token(token)
        return None

    def _say(self, session: Session, delta: str) -> None:
        if not delta:
            return
        last = session.made[-1] if session.made else None
        if isinstance(last, Text):
            session.made[-1] = Text(last.text + delta, session.role)
        else:
            session.made.append(Text(delta, session.role))
        self._events.append(Event(session=session.number, kind="text", text=delta))

    def _start_drawings(self, sessions: list[Session]) -> None:
        """Give every session its noise, and its null context where guidance asks for one."""
        guided = [s for s in sessions if s.request.settings.guidance != 1]
        null = {s.number: Context(s.slots[1]) for s in guided}
        if guided:
            layouts = [self.sequencer.prompt(null_document(s.so_far()), opening="image") for s in guided]
            read(self.network, list(null.values()), layouts)
        for session in sessions:
            settings, size = session.request.settings, picture_size(session.so_far(), session.request.size, self.config)
            autoencoder = self.network.autoencoder
            shape = (autoencoder.channels, size[0] // autoencoder.down, size[1] // autoencoder.down)
            random = generator(settings.seed, session.pictures, "picture")
            noise = torch.randn(shape, generator=random).to(self.network.device)
            contexts = [_open(session), *([null[session.number]] if session.number in null else [])]
            grid, objective = self.sequencer.grid(*size), self.network.objective
            session.drawing = Drawing.start(contexts, noise, objective, settings, grid, random)

    def _draw(self, sessions: list[Session]) -> None:
        """One evaluation of every picture in progress; one pass a picture size."""
        for grid in sorted({s.drawing.grid for s in sessions if s.drawing}):
            group = [(s, s.drawing) for s in sessions if s.drawing and s.drawing.grid == grid]
            rows = [(drawing, context) for _, drawing in group for context in drawing.contexts]
            x = torch.stack([drawing.x for drawing, _ in rows])
            t = torch.tensor([drawing.t for drawing, _ in rows], device=x.device)
            estimates = iter(denoise(self.network, [context for _, context in rows], x, t, grid))
            for session, drawing in group:
                latent = drawing.advance([next(estimates) for _ in drawing.contexts])
                self._events.append(
                    Event(session=session.number, kind="progress", step=drawing.done, steps=drawing.evaluations)
                )
                if latent is not None:
                    self._finish_drawing(session, latent)

    def _finish_drawing(self, session: Session, latent: Tensor) -> None:
        """Hand the picture over; unless it was all, it is read clean, as training read it, and writing goes on."""
        pixels = self.network.autoencoder.decode(latent[None])[0].cpu()
        image = Image(pixels=pixels, target=True, role=session.role)
        session.made.append(image)
        session.drawing, session.pictures = None, session.pictures + 1
        self._events.append(Event(session=session.number, kind="image", image=image))
        if session.request.want == "image":
            return self._end(session, "image")
        session.tokens, session.stream = [], TextStream(session.request.settings.stop)
        session.layout = self.sequencer.image(pixels, position=_open(session).position)
        return None

    def _end(self, session: Session, reason: Reason, *, flush: bool = True) -> None:
        if flush:
            self._say(session, session.stream.finish(self.tokenizer.decode(session.tokens)))
        self.free += session.slots
        session.context, session.slots = None, []
        made = Document(tuple(session.made))
        self._events.append(Event(session=session.number, kind="end", reason=reason, made=made))

    def _picture_tokens(self, document: Document, request: Request) -> int:
        height, width = self.sequencer.grid(*picture_size(document, request.size, self.config))
        return height * width + self.sequencer.time_token


def _open(session: Session) -> Context:
    assert session.context is not None, "the session has ended"
    return session.context
