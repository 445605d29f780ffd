"""Pictures in progress: their noise, their contexts, and one evaluation of all of them together.

Knows nothing of text or of slots. Invariant: a picture depends on its request, its seed and its number in the session.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from monoformer.diffusion.objectives import Estimate
from monoformer.document import Image
from monoformer.generate.admission import null_layouts
from monoformer.generate.buckets import CPU_TOKENS
from monoformer.generate.editing import Start
from monoformer.generate.image import Drawing, Preview
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, attempt, denoise, guarded
from monoformer.generate.prefill import Reading
from monoformer.generate.reader import Reader
from monoformer.generate.session import Event, Session
from monoformer.randomness import generator
from monoformer.sequence import Sequencer

IMAGE_TOKENS = 128
"""So many image tokens take longer than one token of every text."""
WORDS = 8
"""Most tokens that a text gets beside one evaluation of pictures, and one more."""


class Artist:
    """What draws for one model."""

    def __init__(self, network: Network, sequencer: Sequencer) -> None:
        self.network, self.sequencer = network, sequencer

    def open(self, session: Session, reader: Reader) -> None:
        """Let the session read the opening token, and what guidance compares with."""
        context = session.context
        assert context is not None, "the session has ended"
        session.opens, session.readings = True, [Reading(context, context.following(self.sequencer.tokenizer.boi))]
        compared = null_layouts(session.request, session.so_far(), network=self.network, sequencer=self.sequencer)
        for slot, null in zip(session.spare, compared, strict=False):
            reading = reader.shared(null)
            if reading is None:
                reading = reader.restart(slot, null)
            else:
                session.slots.append(reading.context.slot)
            session.readings.append(reading)

    def start(self, session: Session, contexts: list[Context]) -> Drawing:
        """A drawing behind these contexts, from its own noise, or from the noised picture that is edited."""
        request, network = session.request, self.network
        size = request.picture_size(session.so_far(), network.model.config)
        autoencoder = network.autoencoder
        shape = (autoencoder.channels, size[0] // autoencoder.down, size[1] // autoencoder.down)
        random = generator(request.settings.seed, session.pictures, "picture")
        noise = torch.randn(shape, generator=random).to(network.device)
        begins: Start | None = None
        if request.edit is not None:
            latent = autoencoder.encode(request.edit.pixels[None].to(network.device))[0]
            begins = Start.of(request.edit, latent)
        grid = self.sequencer.grid(*size)
        return Drawing.start(contexts, noise, network.objective, request.settings, grid, random, begins=begins)

    def turn(self, sessions: Sequence[Session]) -> list[Session]:
        """Those of the drawing sessions, oldest first, that advance now: on a CPU as many as fill one pass."""
        if self.network.device.type != "cpu":
            return list(sessions)
        chosen: list[Session] = []
        for session in sessions:
            if chosen and _tokens([*chosen, session]) > CPU_TOKENS:
                break
            chosen.append(session)
        return chosen

    def words(self, sessions: Sequence[Session]) -> int:
        """How many tokens more than one every text gets beside an evaluation of these drawings, as it takes longer."""
        return min(WORDS, _tokens(sessions) // IMAGE_TOKENS)

    def advance(self, sessions: Sequence[Session]) -> list[tuple[Session, Tensor | Exception | None]]:
        """One evaluation of every picture, one pass a size; the latent of those that are done, or what failed."""
        found: list[tuple[Session, Tensor | Exception | None]] = []
        pictures = [(session, session.drawing) for session in sessions if session.drawing is not None]
        for grid in sorted({drawing.grid for _, drawing in pictures}):
            group = [(session, drawing) for session, drawing in pictures if drawing.grid == grid]
            rows = [(drawing, context) for _, drawing in group for context in drawing.asked()]
            estimates = iter(attempt(partial(self._denoise, grid=grid), rows))
            for session, drawing in group:
                own = [next(estimates) for _ in drawing.asked()]
                errors = [estimate for estimate in own if isinstance(estimate, Exception)]
                good = [estimate for estimate in own if isinstance(estimate, Estimate)]
                latent = errors[0] if errors else guarded(drawing.advance, good)
                session.drawn += grid[0] * grid[1] if isinstance(latent, Tensor) else 0
                found.append((session, latent))
        return found

    def progress(self, session: Session) -> Event:
        """What is told of the evaluation just done: how far it is, and the estimate where that is wanted."""
        drawing, request = session.drawing, session.request
        assert drawing is not None
        assert drawing.estimate is not None
        is_seen = request.previews and drawing.done % request.previews == 0
        preview = Preview(drawing.estimate, self.network.autoencoder, request.edit) if is_seen else None
        done, steps = drawing.done, drawing.evaluations
        return Event(session=session.number, kind="progress", step=done, steps=steps, preview=preview)

    def finish(self, session: Session, latent: Tensor) -> Image | None:
        """The picture of a latent; None where the model's numbers are broken."""
        if not bool(latent.isfinite().all()):
            return None
        image = Preview(latent, self.network.autoencoder, session.request.edit).image()
        return replace(image, role=session.role)

    def _denoise(self, rows: Sequence[tuple[Drawing, Context]], *, grid: tuple[int, int]) -> list[Estimate]:
        x = torch.stack([drawing.x for drawing, _ in rows])
        t = torch.tensor([drawing.t for drawing, _ in rows], device=x.device)
        return denoise(self.network, [context for _, context in rows], x, t, grid)


def _tokens(sessions: Sequence[Session]) -> int:
    """Image tokens of the next evaluation of these drawings."""
    drawings = [session.drawing for session in sessions if session.drawing is not None]
    return sum(drawing.grid[0] * drawing.grid[1] * len(drawing.asked()) for drawing in drawings)
