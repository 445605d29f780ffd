"""What reads prompts into the cache: each beginning once, long ones in pieces.

Drawings behind equal contexts share one slot, since they only read it. A session that writes has a slot of its own, and
copies into it the longest beginning that some slot holds: another sample of its prompt, or the talk so far. Knows
nothing of sessions.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from monoformer.batch import Layout
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, attempt, explained, read_states
from monoformer.generate.prefill import Reading, plan, predicted_text
from monoformer.generate.slots import WORTH, Slots, common, keys_of
from monoformer.generate.text import score_tokens
from monoformer.sequence import Sequencer

BUDGETS = {"cpu": 512, "gpu": 4096}
"""Tokens of prompts that are read in one step; on a CPU more at once are no faster."""
SCORED = 256
"""Tokens whose log-probabilities are computed at once: each takes a number for every entry of the vocabulary."""


class Reader:
    """The slots of a network's cache, and what is being read into them."""

    def __init__(self, network: Network, sequencer: Sequencer, *, budget: int) -> None:
        self.network, self.sequencer = network, sequencer
        self.budget = budget or BUDGETS["cpu" if network.device.type == "cpu" else "gpu"]
        self.slots = Slots(network.cache)
        self.tokens_read = 0
        """Tokens that passed through the network to be read."""
        self._shared: dict[tuple[Hashable, ...], Reading] = {}
        self._steps = 0

    def has_room(self, layouts: Sequence[Layout], *, spare: int, shared: bool) -> bool:
        """Whether there are slots for these contexts and `spare` more."""
        keys = {self._key(layout) for layout in layouts}
        needed = len(keys - self._shared.keys()) if shared else len(layouts)
        return needed + spare <= len(self.slots.free)

    def start(self, layout: Layout, *, shared: bool, top: int | None = None) -> Reading:
        """Begin to read a layout into a slot, after what is known of it already; with `shared` it is only read later.

        With `top` the log-probabilities of its tokens are wanted, so all of it is read.
        """
        key = self._key(layout)
        if shared and key in self._shared:
            self.slots.share(self._shared[key].context.slot)
            return self._shared[key]
        slots, keys = self.slots, list(key)
        reuses = top is None and self.network.buckets is None  # a copied beginning was read in other pieces
        source, count = slots.longest(keys) if reuses else (0, 0)
        count = min(count, len(layout) - 1)  # the state of the last token is needed
        known = slots.filled[source]
        if count and not slots.users[source] and (count >= known - 1 or len(slots.free) == 1):
            reading = Reading(Context(slots.take(source)), layout, top=top)
            slots.filled[source] = count  # it goes on where it ended
            self._skip(reading, count)
        else:
            others = [slot for slot in slots.free if slot != source or not count]
            reading = Reading(Context(slots.take(others[0])), layout, top=top)
            if count >= WORTH:
                reading.source = source if not slots.users[source] else slots.share(source)
        slots.keys[reading.context.slot] = keys
        if reading.source is not None:
            self._copy(reading, wait=bool(slots.users[source]))
        if shared:
            self._shared[key] = reading
        return reading

    def restart(self, slot: int, layout: Layout) -> Reading:
        """Read a layout into a slot that its user has already, after what this slot or another knows of it."""
        slots, keys, reading = self.slots, list(self._key(layout)), Reading(Context(slot), layout)
        source, count = slots.longest(keys) if self.network.buckets is None else (0, 0)
        count = min(count, slots.filled[source], len(layout) - 1)
        if source == slot:
            slots.filled[slot] = count
        elif count >= WORTH:
            slots.copy(source, slot, count)
        else:
            count = 0
            slots.clear(slot)
        slots.keys[slot] = keys
        if count:
            self._skip(reading, count)
        return reading

    def shared(self, layout: Layout) -> Reading | None:
        """The reading of an equal layout that others draw behind, if there is one; it has one user more then."""
        reading = self._shared.get(self._key(layout))
        if reading is not None:
            self.slots.share(reading.context.slot)
        return reading

    def step(self, readings: Sequence[Reading]) -> None:
        """Read the next pieces of what is not done."""
        self._steps += 1
        open_ones = list({id(r): r for r in readings if not r.is_done and r.error is None}.values())
        busy = {reading.context.slot for reading in open_ones}
        for reading in open_ones:
            if reading.source is not None:
                self._copy(reading, wait=reading.source in busy)
        time = self.sequencer.time_token
        rows = plan([r for r in open_ones if r.source is None], budget=self.budget, time_token=time)
        found = attempt(
            lambda some: list(read_states(self.network, [r.context for r, _ in some], [piece for _, piece in some])),
            rows,
        )
        for (reading, piece), states in zip(rows, found, strict=True):
            reading.turn = self._steps
            if isinstance(states, Exception):
                reading.error = explained(states)
                continue
            self._score(reading, piece, states)
            self.note(reading.context, piece)
            reading.done += len(piece)
            reading.hidden = states[len(piece) - 1]

    def reset(self) -> None:
        """Give every slot back, and forget what it held; broken numbers too, which even a mask would let through."""
        self.slots.wipe()
        self.slots, self._shared = Slots(self.network.cache), {}

    def note(self, context: Context, layout: Layout) -> None:
        """Note that the layout was read into the context."""
        self.tokens_read += len(layout)
        self.slots.read(context.slot, layout, time_token=self.sequencer.time_token)

    def release(self, slots: Sequence[int], readings: Sequence[Reading], *, broken: bool) -> None:
        """Give slots back; what is still to be read into those that nobody else uses is given up."""
        for slot in slots:
            if not self._release(slot, broken=broken):
                continue
            for reading in readings:
                if reading.context.slot == slot and reading.source is not None:
                    self._release(reading.source)
                    reading.source = None

    def _release(self, slot: int, *, broken: bool = False) -> bool:
        """Use a slot no longer; whether that was its last user, so that nobody else can draw behind what it holds."""
        if not self.slots.release(slot, broken=broken):
            return False
        self._shared = {key: r for key, r in self._shared.items() if r.context.slot != slot}
        return True

    def _key(self, layout: Layout) -> tuple[Hashable, ...]:
        return tuple(keys_of(layout, time_token=self.sequencer.time_token))

    def _copy(self, reading: Reading, *, wait: bool) -> None:
        """Copy the beginning from its source, unless that is still being read and we may `wait`."""
        slots, source, slot = self.slots, reading.source, reading.context.slot
        assert source is not None
        count = min(common(slots.keys[slot], slots.keys[source]), len(reading.layout) - 1)
        if wait and slots.filled[source] < count:
            return
        count = min(count, slots.filled[source])
        slots.copy(source, slot, count)
        self._skip(reading, count)
        reading.source = None
        if slots.users[source]:
            self._release(source)

    def _skip(self, reading: Reading, count: int) -> None:
        """The first `count` tokens are in the cache already."""
        reading.done = reading.context.length = count
        reading.context.position = reading.layout.positions[count]

    def _score(self, reading: Reading, piece: Layout, states: Tensor) -> None:
        if reading.top is None:
            return
        tokenizer = self.sequencer.tokenizer
        rows, tokens = predicted_text(reading, len(piece), given=(tokenizer.patch, tokenizer.time, tokenizer.eoi))
        for first in range(0, len(tokens), SCORED):
            part = slice(first, first + SCORED)
            with torch.no_grad():
                logits = self.network.model.text(states[rows[part].to(states.device)])
            reading.scores += score_tokens(logits, tokens[part], top=reading.top)
