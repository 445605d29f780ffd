"""The engine's house-keeping: read once, in pieces, shared; cancelling and failing change nobody else; previews."""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import Pixels
from monoformer.document import Document, Text
from monoformer.generate import artist
from monoformer.generate.buckets import similar
from monoformer.generate.engine import Engine
from monoformer.generate.passes import Context, read
from monoformer.generate.prefill import cut
from monoformer.generate.session import Event
from tests import tiny
from tests.laws.test_generate import (
    CAPTION,
    DRAW,
    EDIT,
    WRITE,
    T,
    ascii_model,
    assert_same_picture,
    engine,
    events_of,
    opens_a_picture,
    picture,
    request,
)

STORY = Document((Text("the large red circle is left of what moves"),))


def limited(budget: int, mode: str = "adaln") -> Engine:
    made = tiny.pretrained(mode)
    return Engine(
        made, engine(made).network.autoencoder, vision=tiny.vision_of(made.model.config), slots=8, budget=budget
    )


# --- read once ---


def test_pictures_of_one_prompt_read_it_once() -> None:
    made = tiny.pretrained()
    prompt, null = (len(made.sequencer().prompt(d, opening="image")) for d in (DRAW, Document(())))
    alone = [engine(made).run([request(made, DRAW, "image", seed=seed)])[0].images[0] for seed in range(4)]
    server = engine(made, slots=2)
    together = server.run([request(made, DRAW, "image", seed=seed) for seed in range(4)])
    assert server.reader.tokens_read == prompt + null, "two slots, one reading, four drawings side by side"
    for one, many in zip(alone, together, strict=True):
        assert_same_picture(many.images[0], one)
    assert sorted(server.free) == [0, 1]
    other = Document((Text("a blue square", "user"),))
    three = engine(made, slots=3)
    three.add(request(made, DRAW, "image"))
    three.add(request(made, other, "image"))
    three.step()
    assert (len(three.active), three.free) == (2, []), "different prompts share the null context"


def test_a_slot_that_went_back_when_its_beginning_was_copied_is_shared_no_longer() -> None:
    """A picture of one step ends before another prompt has copied its beginning; then its prompt comes again."""
    made = tiny.pretrained()
    first, second = (Document((Text(f"the large red circle is left of {end}"),)) for end in ("what", "a blue square"))
    expected = [engine(made).run([request(made, d, "image", steps=1)])[0].images[0] for d in (first, second)]
    server = engine(made)
    for document in (first, second):
        server.add(request(made, document, "image", steps=1))
    found = [event.image for _ in range(9) for event in server.step() if event.image]
    assert not server.active
    (again,) = server.run([request(made, first, "image", steps=1)])
    for image, own in zip([*found, *again.images], [*expected, expected[0]], strict=True):
        assert image is not None
        assert_same_picture(image, own)
    assert sorted(server.free) == list(range(len(server.free)))


def test_samples_of_one_prompt_copy_its_beginning() -> None:
    made = tiny.pretrained()
    warm: dict[str, Any] = {"temperature": 1.0, "max_tokens": 6}
    alone = [engine(made).run([request(made, STORY, "text", seed=seed, **warm)])[0] for seed in range(3)]
    server = engine(made)
    assert server.run([request(made, STORY, "text", seed=seed, **warm) for seed in range(3)]) == alone
    prompt = len(made.sequencer().prompt(STORY))
    assert server.reader.tokens_read <= prompt + 2 * 1 + 3 * 6, "the last token of each copy, and what was written"


@pytest.mark.parametrize("mode", ["adaln", "token", "vision"])
def test_a_talk_that_goes_on_finds_its_cache(mode: str) -> None:
    made = tiny.pretrained(mode)
    server = engine(made, slots=3)
    shown = Document((picture(3, (12, 8), role="user"), Text("what is seen", "user")))
    (answer,) = server.run([request(made, shown, "text", max_tokens=4)])
    server.run([request(made, WRITE, "text", max_tokens=2)])  # somebody else in between
    before = server.reader.tokens_read
    more = Document((*shown.segments, *answer.segments, Text("of what", "user")))
    (found,) = server.run([request(made, more, "text", max_tokens=1)])
    first, whole = (len(made.sequencer().prompt(document)) for document in (shown, more))
    assert server.reader.tokens_read - before <= whole - first + 1, "neither the picture nor the question again"
    assert found == engine(made).run([request(made, more, "text", max_tokens=1)])[0]
    changed = Document((picture(4, (12, 8), role="user"), *shown.segments[1:]))
    before = server.reader.tokens_read
    assert server.run([request(made, changed, "text", max_tokens=4)]) == engine(made).run(
        [request(made, changed, "text", max_tokens=4)]
    )
    assert server.reader.tokens_read - before >= first - 4, "another picture is another beginning"


def test_what_guidance_compares_with_grows_with_the_pictures_of_a_session() -> None:
    made = opens_a_picture(tiny.pretrained(), DRAW)
    read, pictures = [], []
    for guidance in (1.0, 2.0):
        server = engine(made)
        server.writer.unwritable = torch.arange(made.model.config.vocabulary) != T.boi  # it draws until no room is left
        events = events_of(server, request(made, DRAW, "any", steps=2, guidance=guidance))
        pictures = [event.image for event in events if event.image]
        read.append(server.reader.tokens_read)
    assert len(pictures) > 3
    whole = len(made.sequencer().prompt(Document(tuple(pictures[:-1])), opening="image"))
    assert read[1] - read[0] <= whole + 2 * len(pictures), "each picture once, and the opening tokens again"


# --- in pieces ---


@pytest.mark.parametrize("mode", ["adaln", "token", "vision"])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_pieces_never_cut_an_image_and_make_the_whole(mode: str, most: int) -> None:
    own = tiny.sequencer(mode)
    layout = own.prompt(EDIT)
    done, pieces = 0, []
    while done < len(layout):
        pieces.append(cut(layout, done, most=most, time_token=own.time_token))
        done += len(pieces[-1])
    assert [token for piece in pieces for token in piece.ids] == layout.ids
    assert sum(len(piece.blocks) for piece in pieces) == len(layout.blocks)
    for piece in pieces:
        assert len(piece) <= most or len(piece.blocks) == 1
        for block in piece.blocks:
            assert block.start >= own.time_token * (not block.by_encoder)
            assert block.start + block.grid[0] * block.grid[1] <= len(piece)


@pytest.mark.parametrize("mode", ["adaln", "token", "vision"])
def test_reading_in_pieces_gives_the_same(mode: str) -> None:
    made = tiny.pretrained(mode)
    requests = [request(made, EDIT, "image", size=(8, 8)), request(made, CAPTION, "text", max_tokens=4)]
    whole, pieces = limited(4096, mode).run(requests), limited(5, mode).run(requests)
    assert_same_picture(pieces[0].images[0], whole[0].images[0])
    assert pieces[1] == whole[1]


def test_a_long_prompt_holds_nobody_up() -> None:
    made = ascii_model()
    server = limited(10, "causal")
    server.network.model.load_state_dict(made.model.state_dict())
    server.add(request(made, WRITE, "text", max_tokens=30))
    server.step()
    long = server.add(request(made, Document((Text("qz" * 40),)), "text", max_tokens=1))
    short = server.add(request(made, Document((Text("of"),)), "text", max_tokens=1))
    told: list[list[int]] = []
    while len(told) < 12 and not (told and long in told[-1]):
        told.append([event.session for event in server.step()])
    assert len(told) >= 8, "eighty tokens, ten a step"
    assert all(0 in sessions for sessions in told), "who writes, writes on"
    assert any(short in sessions for sessions in told[:3]), "a short prompt does not wait for the long one"


def test_on_a_cpu_the_oldest_pictures_fill_a_pass_and_texts_do_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artist, "CPU_TOKENS", 8)  # two rows of four patches: one guided picture
    monkeypatch.setattr(artist, "IMAGE_TOKENS", 2)  # each evaluation is worth four tokens more
    made = tiny.pretrained("causal")
    pictures = [request(made, DRAW, "image", size=(8, 8), seed=seed, steps=3, guidance=2.0) for seed in range(3)]
    server = engine(made, slots=8)
    for one in pictures:
        server.add(one)
    text = server.add(request(made, WRITE, "text", max_tokens=12, logit_bias=((T.eos, -1000.0),)))
    told = [event for event in events_of(server) if event.kind in ("progress", "end")]
    assert [event.session for event in told if event.kind == "progress"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    ends = [event.session for event in told if event.kind == "end"]
    assert ends.index(text) < ends.index(1), "twelve tokens take three evaluations"
    made_by = {event.session: event.made for event in told if event.made is not None}
    for number, one in enumerate(pictures):
        (alone,) = engine(made).run([one])
        assert_same_picture(made_by[number].images[0], alone.images[0])


# --- one request's end is its own ---


def pictures_and_words(events: list[Event]) -> dict[int, Document | None]:
    return {event.session: event.made for event in events if event.kind == "end"}


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_cancelling_frees_and_changes_nobody_else(after: int) -> None:
    made = tiny.pretrained()
    others = [request(made, DRAW, "image", seed=1), request(made, STORY, "text", seed=2, max_tokens=5)]
    expected = engine(made, slots=8).run(others)
    server = engine(made, slots=8)
    gone = [
        server.add(request(made, document, want, seed=1))  # the same contexts and beginnings as the others
        for document, want in ((DRAW, "image"), (STORY, "text"))
    ]
    kept = [server.add(one) for one in others]
    found: list[Event] = []
    for _ in range(after):
        found += server.step()
    for number in gone:
        last = server.cancel(number)
        assert last is not None
        assert (last.reason, last.session) == ("cancelled", number)
        assert server.cancel(number) is None
    found += events_of(server)
    made_by = pictures_and_words(found)
    assert made_by.keys() == {*kept}
    drawn, written = (made_by[number] for number in kept)
    assert drawn is not None
    assert_same_picture(drawn.images[0], expected[0].images[0])
    assert written == expected[1]
    assert sorted(server.free) == [*range(8)]


def nan_latent(server: Engine, number: int) -> None:
    (session,) = [s for s in server.active if s.number == number]
    assert session.drawing is not None
    session.drawing.x.fill_(torch.nan)


def nan_cache(server: Engine, number: int) -> None:
    (session,) = [s for s in server.active if s.number == number]
    assert session.context is not None
    server.network.cache.values[:, session.context.slot] = torch.nan


def wrong_shape(server: Engine, number: int) -> None:
    (session,) = [s for s in server.active if s.number == number]
    assert session.drawing is not None
    session.drawing.x = session.drawing.x[:2]


@pytest.mark.parametrize(
    ("want", "harm"), [("image", nan_latent), ("image", wrong_shape), ("image", nan_cache), ("text", nan_cache)]
)
def test_what_breaks_in_one_request_ends_it_alone(want: Any, harm: Callable[[Engine, int], None]) -> None:
    made = tiny.pretrained()
    others = [request(made, EDIT, "image", size=(8, 8)), request(made, CAPTION, "text", max_tokens=6)]
    expected = engine(made, slots=8).run(others)
    server = engine(made, slots=8)
    bad = server.add(request(made, DRAW if want == "image" else STORY, want, max_tokens=6))
    kept = [server.add(one) for one in others]
    found = server.step()
    harm(server, bad)
    found += events_of(server)
    (end,) = [event for event in found if event.kind == "end" and event.session == bad]
    assert end.reason == "error"
    assert end.error
    made_by = pictures_and_words(found)
    drawn, written = (made_by[number] for number in kept)
    assert drawn is not None
    assert_same_picture(drawn.images[0], expected[0].images[0])
    assert written == expected[1]
    assert bool(server.network.cache.values.isfinite().all()), "nothing broken stays for the next user of the slot"
    assert sorted(server.free) == [*range(8)]


class Speechless(Pixels):
    """An autoencoder that fails without a word."""

    def __init__(self, fails: str) -> None:
        self.fails = fails

    def encode(self, pixels: Tensor) -> Tensor:
        if self.fails == "encode":
            raise MemoryError
        return super().encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        if self.fails == "decode":
            raise AssertionError
        return super().decode(latents)


@pytest.mark.parametrize(
    ("fails", "want", "expected"),
    [("encode", "text", "MemoryError"), ("encode", "image", "MemoryError"), ("decode", "image", "AssertionError")],
)
def test_an_error_without_a_message_ends_its_request_too(fails: str, want: Any, expected: str) -> None:
    made = tiny.pretrained()
    server = Engine(made, Speechless(fails), slots=4)
    server.add(request(made, EDIT, want, size=(8, 8)) if want == "image" else request(made, EDIT, want))
    for _ in range(8):
        ends = [event for event in server.step() if event.kind == "end"]
        if ends:
            break
    assert [(end.reason, end.error) for end in ends] == [("error", expected)]
    assert sorted(server.free) == [*range(4)]


def test_run_says_what_failed() -> None:
    made = tiny.pretrained()
    with torch.no_grad():
        made.model.text_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="1 of 2 requests failed: the model's numbers are not finite"):
        engine(made).run([request(made, WRITE, "text"), request(made, DRAW, "image")])


def interrupt_at(line: int) -> Callable[..., Any]:
    """A trace that presses Ctrl-C at so many lines of the engine's own code."""
    rooms = str(Path(artist.__file__).parent)
    left = [line]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(rooms):
            return None
        left[0] -= event == "line"
        if left[0] == 0:
            raise KeyboardInterrupt
        return trace

    return trace


def test_ctrl_c_anywhere_leaves_nothing_behind() -> None:
    made = tiny.pretrained()
    requests = [request(made, DRAW, "image"), request(made, CAPTION, "text", max_tokens=4)]
    expected, server = engine(made).run(requests), engine(made)
    for line in range(1, 2400, 173):  # the whole call has some 2,700
        before = sys.gettrace()
        sys.settrace(interrupt_at(line))
        try:
            with pytest.raises(KeyboardInterrupt):
                server.run(requests)
        finally:
            sys.settrace(before)
        assert (server.active, list(server.waiting), sorted(server.free)) == ([], [], [0, 1, 2, 3])
        found = server.run(requests)
        assert found[1] == expected[1]
        assert_same_picture(found[0].images[0], expected[0].images[0])


def test_calls_of_several_threads_take_turns() -> None:
    made = tiny.pretrained()
    calls = [[request(made, STORY, "text", seed=n, max_tokens=3 + n), request(made, DRAW, "image")] for n in range(3)]
    expected, server = [engine(made).run(call) for call in calls], engine(made)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(server.run, calls))
    for (words, drawn), (same_words, same_drawn) in zip(found, expected, strict=True):
        assert words == same_words
        assert_same_picture(drawn.images[0], same_drawn.images[0])


# --- previews ---


def test_previews_are_the_estimates_and_cost_nothing_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.pretrained()
    server = engine(made)
    decoded = []
    inner = server.network.autoencoder.decode
    monkeypatch.setattr(server.network.autoencoder, "decode", lambda x: decoded.append(len(x)) or inner(x))
    events = events_of(server, replace(request(made, DRAW, "image"), previews=2))
    previews = [event.preview for event in events if event.kind == "progress"]
    assert [preview is not None for preview in previews] == [False, True, False, True]
    assert decoded == [1], "the picture itself"
    last = previews[-1]
    assert last is not None
    (drawn,) = [event.image for event in events if event.image is not None]
    assert torch.equal(last.image().pixels, drawn.pixels), "euler's last step lands on the estimate"


def test_prompts_of_very_different_lengths_are_read_apart_and_none_moves_on_where_one_fails() -> None:
    assert similar([2, 15, 40]) == [[0, 1, 2]]
    assert similar([2, 415, 300, 5]) == [[1, 2], [0, 3]]
    made = tiny.pretrained("causal")
    long, short = (made.sequencer().prompt(Document((Text("of " * count),))) for count in (60, 1))
    assert similar([len(long), len(short)]) == [[0], [1]]
    network = engine(made).network
    contexts = [Context(0), Context(1)]
    together = read(network, contexts, [long, short])
    assert [context.length for context in contexts] == [len(long), len(short)]
    for row, layout in enumerate((long, short)):
        torch.testing.assert_close(together[row], read(network, [Context(2)], [layout])[0], rtol=1e-5, atol=1e-5)
    short.ids[-1] = made.model.config.vocabulary
    fresh = [Context(2), Context(3)]
    with pytest.raises(IndexError):
        read(network, fresh, [long, short])
    assert [(context.length, context.position) for context in fresh] == [(0, 0), (0, 0)]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory a process holds")
def test_slots_that_nobody_used_take_no_memory_on_a_cpu() -> None:
    def held() -> int:
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return int(kilobytes) * 1024

    made = tiny.pretrained()
    before = held()
    cache = made.model.cache(4096, 512)
    assert cache.keys.nbytes == 4096 * made.model.config.layers * 512 * made.model.config.width * 4
    assert not bool(cache.keys[:, 17].any())
    cache.keys[:, 17] += 1
    assert held() - before < 0.1 * cache.keys.nbytes
