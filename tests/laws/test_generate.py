"""Generation: cached = uncached for words and pictures, alone = in a batch, guidance, seeds, slots, limits."""

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import Pixels
from monoformer.batch import Layout
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.diffusion.objectives import Estimate, build_objective
from monoformer.diffusion.samplers import build_sampler, drive
from monoformer.document import Document, Image, Text
from monoformer.generate.engine import Engine
from monoformer.generate.guidance import guide, null_document
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, denoise, read
from monoformer.generate.session import Event, Request
from monoformer.generate.text import choose_token, nucleus
from monoformer.model.attention import dense_mask
from monoformer.model.monoformer import Place
from monoformer.model.unet import Skips
from monoformer.packing import collate
from monoformer.pretrained import Pretrained
from monoformer.randomness import generator
from tests import tiny

T = tiny.tokenizer()


def picture(seed: int = 0, size: tuple[int, int] = (8, 8), **options: Any) -> Image:
    return tiny.image(Random(seed), size=size, **options)


DRAW = Document((Text("a red circle", "user"),))
EDIT = Document((picture(1, role="user"), Text("blue", "user"), picture(2, (4, 8), role="user"), Text("of", "user")))
WRITE = Document((Text("the large"),))
CAPTION = Document((picture(3, (12, 8)), Text("is")))


def engine(made: Pretrained, slots: int = 4) -> Engine:
    return Engine(made, Pixels(), vision=tiny.vision_of(made.model.config), slots=slots)


def request(made: Pretrained, document: Document, want: Any, **settings: Any) -> Request:
    size = settings.pop("size", None)
    return Request(document=document, want=want, settings=replace(made.generate, **settings), size=size)


def events_of(server: Engine, *requests: Request) -> list[Event]:
    for one in requests:
        server.add(one)
    found: list[Event] = []
    while server.active or server.waiting:
        found += server.step()
    return found


@torch.no_grad()
def states_of(
    made: Pretrained,
    layout: Layout,
    *,
    target: Tensor | None = None,
    t: float = 0.0,
    skips: list[Skips] | None = None,
) -> Tensor:
    """Hidden states (T, D) of the whole sequence at once, no cache; a noised last picture shows `target` at time t."""
    batch = collate([[layout]], length=len(layout), pad=T.pad)
    path = build_objective(made.diffusion).path
    images, times, places = [], [], []
    for slots in batch.images:
        x, time = Pixels().encode(slots.pixels)[slots.picture], torch.zeros(len(slots.row))
        if target is not None and slots.noised.any():
            x, time = x.clone(), time.clone()
            x[slots.noised], time[slots.noised] = target, t
        images.append(x)
        times.append(path.network_time(time))
        places.append(Place(slots.row, slots.start, slots.grid))
    given: dict[str, Any] = {"images": images, "times": times, "places": places, **tiny.features_of(batch)}
    states: Tensor = made.model(batch.ids, batch.positions, dense_mask(batch), **given, skips=skips)[0]
    return states


@torch.no_grad()
def predicted(made: Pretrained, layout: Layout, *, target: Tensor, t: float) -> Tensor:
    """What the image head returns (1, C, h, w) for the layout's noised last picture: the whole sequence at once."""
    skips: list[Skips] = []
    states = states_of(made, layout, target=target, t=t, skips=skips)
    groups = collate([[layout]], length=len(layout), pad=T.pad).images
    ((slots, own),) = [(slots, kept) for slots, kept in zip(groups, skips, strict=True) if slots.noised.any()]
    time = build_objective(made.diffusion).path.network_time(torch.tensor([t]))
    place = Place(torch.tensor([0]), slots.start[slots.noised], slots.grid)
    return made.model.image(states[None], time, place, tuple(kept[slots.noised] for kept in own))


def greedy(made: Pretrained, layout: Layout, count: int) -> list[int]:
    """The likeliest tokens, the whole sequence computed anew for each; eos ends, and no other special token comes."""
    banned = [token for token in (*T.special, *range(T.size, made.model.config.vocabulary)) if token != T.eos]
    tokens: list[int] = []
    while len(tokens) < count:
        logits = made.model.text(states_of(made, layout)[-1])
        logits[banned] = -torch.inf
        token = int(logits.argmax())
        if token == T.eos:
            break
        tokens.append(token)
        layout.add_token(token)
    return tokens


def network_of(made: Pretrained, slots: int = 6) -> Network:
    return Network(
        model=made.model,
        objective=build_objective(made.diffusion),
        autoencoder=Pixels(),
        cache=made.model.cache(slots, made.model.config.context),
        vision=tiny.vision_of(made.model.config),
    )


# --- cached = uncached ---


@pytest.mark.parametrize("mode", tiny.MODES)
@pytest.mark.parametrize("document", [WRITE, CAPTION, EDIT], ids=["text", "picture first", "chat with two pictures"])
def test_cached_words_are_the_uncached_ones(mode: str, document: Document) -> None:
    made = tiny.pretrained(mode)
    expected = greedy(made, made.sequencer().prompt(document), 12)
    assert expected
    (answer,) = engine(made).run([request(made, document, "text", max_tokens=12)])
    assert "".join(s.text for s in answer.segments if isinstance(s, Text)) == T.decode(expected)


@pytest.mark.parametrize("mode", tiny.MODES)
def test_reading_in_pieces_is_reading_at_once(mode: str) -> None:
    made = tiny.pretrained(mode)
    documents = [CAPTION, WRITE, EDIT]
    layouts = [made.sequencer().prompt(document) for document in documents]
    network = network_of(made)
    contexts = [Context(5), Context(2), Context(0)]
    hidden = read(network, contexts, layouts)  # different lengths share a pass
    for row, layout in enumerate(layouts):
        torch.testing.assert_close(hidden[row], states_of(made, layout)[-1], rtol=1e-5, atol=1e-5)
    for step in range(3):
        pieces = []
        for context, layout in zip(contexts, layouts, strict=True):
            assert (context.length, context.position) == (len(layout), layout.next_position)
            piece = Layout(next_position=context.position)
            for token in range(step + 1):
                piece.add_token(30 + token)
                layout.add_token(30 + token)
            pieces.append(piece)
        order = [2, 0, 1]
        hidden = read(network, [contexts[i] for i in order], [pieces[i] for i in order])
        for row, i in enumerate(order):
            torch.testing.assert_close(hidden[row], states_of(made, layouts[i])[-1], rtol=1e-5, atol=1e-5)


DIFFUSIONS: list[DiffusionConfig] = [
    FlowConfig(),
    FlowConfig(prediction="velocity"),
    DDPMConfig(),
    DDPMConfig(prediction="v", variance="learned"),
]


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=["x_0", "velocity", "eps", "learned"])
@pytest.mark.parametrize("mode", tiny.MODES)
def test_denoising_against_the_prefix_is_the_full_pass(mode: str, diffusion: DiffusionConfig) -> None:
    made = tiny.pretrained(mode, diffusion=diffusion)
    objective, own = build_objective(diffusion), made.sequencer()
    network, contexts = network_of(made), [Context(3), Context(1), Context(4)]
    documents = [EDIT, DRAW, CAPTION]
    read(network, contexts, [own.prompt(document, opening="image") for document in documents])
    x = torch.randn(3, 3, 8, 8, generator=generator(0, "x"))
    t = torch.tensor([0.3, 0.8, 1.0])
    found = denoise(network, contexts, x, t, (2, 2))
    keys = network.cache.keys.clone()
    for row, document in enumerate(documents):
        layout = own.prompt(document, opening="image")
        prefix = len(layout)
        own._add_block(layout, picture(9), 99, noised=True)
        assert layout.blocks[-1].start - prefix == own.time_token
        prediction = predicted(made, layout, target=x[row], t=float(t[row]))
        expected = objective.estimate(prediction, x[row : row + 1], t[row : row + 1])
        for cached, whole in zip(found[row], expected, strict=True):
            if whole is None:
                assert cached is None
            else:
                torch.testing.assert_close(cached, whole[0], rtol=0, atol=1e-5 * float(whole.abs().max()))
    again = denoise(network, contexts, x, t, (2, 2))
    assert torch.equal(network.cache.keys, keys), "denoising writes nothing"
    assert all(torch.equal(a.x_0, b.x_0) for a, b in zip(found, again, strict=True))


def opens_a_picture(made: Pretrained, document: Document) -> Pretrained:
    """The same model, made to draw at once: what it thinks after the prompt points at boi."""
    hidden = states_of(made, made.sequencer().prompt(document))[-1]
    with torch.no_grad():
        made.model.text_head.weight[T.boi] = 3 * hidden
    return made


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("mode", ["adaln", "token", "causal", "vision"])
@pytest.mark.parametrize("document", [DRAW, EDIT], ids=["draw", "edit"])
def test_after_drawing_the_cache_holds_the_clean_picture(mode: str, document: Document, guidance: float) -> None:
    made = opens_a_picture(tiny.pretrained(mode), document)
    server = engine(made)
    server.add(request(made, document, "any", guidance=guidance, temperature=0.0))
    drawn: Image | None = None
    while drawn is None:
        drawn = next((event.image for event in server.step() if event.kind == "image"), None)
    (session,) = server.active  # the same step has read the picture and chosen the next token
    context = session.context
    assert context is not None
    whole = made.sequencer().prompt(Document((*document.segments, drawn)))
    if document.is_chat:
        assert drawn.role == "assistant"
    assert (context.length, context.position) == (len(whole), whole.next_position)
    fresh = network_of(made)
    read(fresh, [Context(0)], [whole])
    for cached, read_at_once in (
        (server.network.cache.keys, fresh.cache.keys), (server.network.cache.values, fresh.cache.values),
    ):  # fmt: skip
        torch.testing.assert_close(
            cached[:, context.slot, :, : len(whole)], read_at_once[:, 0, :, : len(whole)], rtol=1e-5, atol=1e-5
        )


def test_writing_goes_on_after_drawing_as_from_a_fresh_prefill() -> None:
    made = opens_a_picture(tiny.pretrained("adaln", context=48), DRAW)
    (answer,) = engine(made).run([request(made, DRAW, "any", max_tokens=6)])
    assert isinstance(answer.segments[0], Image)
    following = [s.text if isinstance(s, Text) else None for s in answer.segments[1:]]
    first = following[0] if following else ""
    prompt = made.sequencer().prompt(Document((*DRAW.segments, answer.segments[0])))
    logits = made.model.text(states_of(made, prompt)[-1])
    logits[[token for token in T.special if token not in (T.eos, T.boi)]] = -torch.inf
    token = int(logits.argmax())
    if token == T.boi:
        assert first is None
    elif token == T.eos:
        assert not following
    else:
        assert first is not None
        assert first.startswith(T.decode([token]).rstrip("\ufffd"))


def test_a_model_that_only_wants_to_draw_ends_when_no_room_is_left() -> None:
    made = tiny.pretrained("adaln")
    with torch.no_grad():  # every state has a large part along its mean: boi always wins
        made.model.transformer.norm.weight.fill_(0)
        made.model.text_head.weight.zero_()
    server = engine(made)
    server.writer.unwritable = torch.arange(made.model.config.vocabulary) != T.boi  # nothing else can be chosen
    made_up = [event.made for event in events_of(server, request(made, DRAW, "any", steps=1)) if event.kind == "end"]
    assert len(made_up) == 1
    assert made_up[0] is not None
    prompt, each = len(made.sequencer().prompt(DRAW)), 4 + 2
    assert len(made_up[0].images) == (160 - prompt) // each


# --- guidance ---


def denoised(made: Pretrained, contexts: list[Document], settings: GenerateConfig, size: tuple[int, int]) -> Image:
    """A picture drawn by the full pass alone: no cache, no engine; two contexts are mixed by guidance."""
    objective, own = build_objective(made.diffusion), made.sequencer()

    def denoise_fully(x: Tensor, t: float) -> Estimate:
        found = []
        for document in contexts:
            layout = own.prompt(document, opening="image")
            own._add_block(layout, Image(pixels=torch.zeros((3, *size), dtype=torch.uint8)), 99, noised=True)
            prediction = predicted(made, layout, target=x, t=t)
            found.append(objective.estimate(prediction, x[None], torch.tensor([t])).x_0[0])
        if len(found) == 1:
            return Estimate(found[0])
        return Estimate(found[1] + settings.guidance * (found[0] - found[1]))

    noise = torch.randn((3, *size), generator=generator(settings.seed, 0, "picture"))
    latent = drive(build_sampler(settings.sampler, noise, objective.path.levels(settings.steps)), denoise_fully)
    return Image(pixels=Pixels().decode(latent[None])[0])


def assert_same_picture(first: Image, second: Image) -> None:
    difference = (first.pixels.int() - second.pixels.int()).abs()
    assert difference.max() <= 1
    assert float(difference.float().mean()) < 0.02, "rounding touches one value in fifty at most"
    assert len(second.pixels.unique()) > 8, "the pictures must not be trivial"


@pytest.mark.parametrize("document", [DRAW, EDIT], ids=["draw", "edit"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_guidance_1_is_conditional_and_costs_one_slot(document: Document, sampler: str) -> None:
    made = tiny.pretrained("adaln")
    server = engine(made)
    one = request(made, document, "image", guidance=1.0, sampler=sampler, size=(12, 8), seed=7)
    server.add(one)
    server.step()
    assert len(server.free) == 3, "no second context"
    events = events_of(server)
    drawn = next(event.image for event in events if event.kind == "image")
    assert drawn is not None
    assert_same_picture(drawn, denoised(made, [document], one.settings, (12, 8)))


@pytest.mark.parametrize("document", [DRAW, EDIT], ids=["draw", "edit"])
@pytest.mark.parametrize("guidance", [2.0, 0.0])
def test_guidance_mixes_the_null_context_of_training(document: Document, guidance: float) -> None:
    made = tiny.pretrained("token")
    server = engine(made)
    one = request(made, document, "image", guidance=guidance, size=(8, 8), seed=3)
    server.add(one)
    server.step()
    assert len(server.free) == 2
    drawn = next(event.image for event in events_of(server) if event.kind == "image")
    assert drawn is not None
    assert_same_picture(drawn, denoised(made, [document, null_document(document)], one.settings, (8, 8)))


def test_guidance_of_some_channels_leaves_the_others_to_the_condition() -> None:
    there, plain = (Estimate(torch.randn(3, 8, 8, generator=generator(0, key)), torch.ones(())) for key in "ab")
    some, every = guide(there, plain, 2.5, channels=2), guide(there, plain, 2.5)
    assert torch.equal(some.x_0[:2], every.x_0[:2])
    assert torch.equal(some.x_0[2], there.x_0[2])
    made = tiny.pretrained()
    pictures = [engine(made).run([request(made, DRAW, "image", guided_channels=n)])[0].images[0] for n in (0, 2, 3)]
    assert torch.equal(pictures[2].pixels, pictures[0].pixels)
    assert not torch.equal(pictures[1].pixels, pictures[0].pixels)
    refused(made, request(made, DRAW, "image", guided_channels=4), "guided_channels = 4, but the model gives out 3")


# --- alone = in a batch, seeds ---


def mixed(made: Pretrained) -> list[Request]:
    warm: dict[str, Any] = {"temperature": 1.0, "max_tokens": 9}
    return [
        request(made, DRAW, "image", seed=1),
        request(made, WRITE, "text", seed=2, **warm),
        request(made, EDIT, "image", seed=3, sampler="heun", steps=3, size=(8, 8)),
        request(made, CAPTION, "text", seed=4, **warm),
        request(made, DRAW, "image", seed=5, guidance=1.0, size=(12, 8), steps=6),
        request(made, EDIT, "any", seed=6, **warm),
        request(made, EDIT, "image", seed=8),
        request(made, DRAW, "image", seed=9, sampler="ddim", eta=0.8),
        request(made, DRAW, "image", seed=10, sampler="ddim", eta=0.8),
    ]


@pytest.mark.parametrize("mode", ["adaln", "token", "vision"])
def test_alone_is_in_a_batch(mode: str) -> None:
    made = tiny.pretrained(mode)
    requests = mixed(made)
    together = engine(made, slots=14).run(requests)
    crowded = engine(made, slots=3).run(requests)
    for number, one in enumerate(requests):
        (alone,) = engine(made).run([one])
        for batched in (together[number], crowded[number]):
            assert [type(s) for s in batched.segments] == [type(s) for s in alone.segments]
            for a, b in zip(alone.segments, batched.segments, strict=True):
                if isinstance(a, Text):
                    assert a == b
                else:
                    assert isinstance(b, Image)
                    assert_same_picture(b, a)
    assert all(document.segments for document in together)


def test_seeds_decide() -> None:
    made = tiny.pretrained()
    drawn = [engine(made).run([request(made, DRAW, "image", seed=seed)])[0].images[0].pixels for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0].int() - drawn[2].int()).abs().float().mean() > 5
    written = [
        engine(made).run([request(made, WRITE, "text", seed=seed, temperature=1.0)])[0].segments for seed in (0, 0, 1)
    ]
    assert written[0] == written[1] != written[2]


def test_two_pictures_of_one_session_have_their_own_noise() -> None:
    made = opens_a_picture(tiny.pretrained(), DRAW)
    server = engine(made)
    server.writer.unwritable = torch.arange(made.model.config.vocabulary) != T.boi
    images = [event.image for event in events_of(server, request(made, DRAW, "any", steps=2)) if event.image]
    assert len(images) > 1
    assert (images[0].pixels.int() - images[1].pixels.int()).abs().float().mean() > 5


def test_the_global_generator_is_left_alone() -> None:
    made = tiny.pretrained()
    before = torch.random.get_rng_state()
    engine(made).run(mixed(made))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- slots ---


def test_slots_come_back_after_every_request() -> None:
    made = tiny.pretrained()
    server = engine(made, slots=5)
    for one in mixed(made):
        server.run([one])
        assert sorted(server.free) == [0, 1, 2, 3, 4]
        assert not server.active


def test_more_requests_than_slots_wait_and_complete_in_order() -> None:
    made = tiny.pretrained()
    server = engine(made, slots=2)
    requests = [request(made, WRITE, "text", seed=n, max_tokens=2, temperature=1.0) for n in range(5)]
    requests.insert(2, request(made, DRAW, "image", steps=2))
    ended = [event.session for event in events_of(server, *requests) if event.kind == "end"]
    assert sorted(ended) == list(range(6))
    assert ended.index(2) < min(ended.index(4), ended.index(5)), "what came first is not overtaken"
    assert sorted(server.free) == [0, 1]


def test_a_slot_used_before_changes_nothing() -> None:
    made = tiny.pretrained()
    server = engine(made, slots=2)
    server.run([request(made, EDIT, "image", size=(12, 8)), request(made, CAPTION, "text")])
    again = server.run([request(made, DRAW, "image", seed=4)])[0].images[0]
    assert torch.equal(
        again.pixels, engine(made, slots=2).run([request(made, DRAW, "image", seed=4)])[0].images[0].pixels
    )


def test_an_engine_needs_two_slots() -> None:
    with pytest.raises(ValueError, match="at least 2 slots"):
        engine(tiny.pretrained(), slots=1)


# --- events ---


def test_events_tell_the_whole_story() -> None:
    made = opens_a_picture(tiny.pretrained(context=48), DRAW)
    for sampler, evaluations in (("euler", 4), ("heun", 7)):
        events = events_of(engine(made), request(made, DRAW, "any", max_tokens=3, sampler=sampler))
        end = events[-1]
        assert end.kind == "end"
        assert end.made is not None
        text = "".join(event.text for event in events)
        assert text == "".join(s.text for s in end.made.segments if isinstance(s, Text))
        assert [event.image for event in events if event.kind == "image"] == list(end.made.images)
        progress = [(event.step, event.steps) for event in events if event.kind == "progress"][:evaluations]
        assert progress == [(n + 1, evaluations) for n in range(evaluations)]
        assert all(image.role == "assistant" for image in end.made.images)


# --- what ends the writing ---


def words_of(made: Pretrained, document: Document = WRITE, **settings: Any) -> tuple[str, str | None]:
    events = events_of(engine(made), request(made, document, "text", **settings))
    return "".join(event.text for event in events), events[-1].reason


def ascii_model() -> Pretrained:
    """A model that writes plain letters, so that decoding cuts no character in two."""
    made = tiny.pretrained("causal")
    letters = {token for token in range(T.size) if T.decode([token]).isascii() and T.decode([token]).strip().isalpha()}
    with torch.no_grad():
        for token in range(T.size):
            if token not in letters:
                made.model.text_head.weight[token] = 0
        made.model.text_head.weight[T.bos] = 0
    return made


def test_max_tokens_and_reasons() -> None:
    made = ascii_model()
    expected = greedy(made, made.sequencer().prompt(WRITE), 10)
    assert len(expected) == 10
    for count in (0, 1, 5, 10):
        assert words_of(made, max_tokens=count) == (T.decode(expected[:count]), "length")
    with torch.no_grad():
        made.model.text_head.weight[T.eos] = 50 * made.model.text_head.weight[expected[3]]
    text, reason = words_of(made, max_tokens=30)
    assert reason == "stop"
    assert text == T.decode(expected)[: len(text)]
    assert len(text) < len(T.decode(expected))


def test_the_context_ends_the_writing() -> None:
    made = ascii_model()
    prompt = len(made.sequencer().prompt(WRITE))
    text, reason = words_of(made, max_tokens=10_000)
    assert reason == "length"
    assert text == T.decode(greedy(made, made.sequencer().prompt(WRITE), 160 - prompt))


def test_stop_strings_end_the_writing_and_are_left_out() -> None:
    made = ascii_model()
    full, _ = words_of(made, max_tokens=12)
    assert len(full) > 12
    for stop in (full[4:6], full[3:9], full[7]):
        text, reason = words_of(made, max_tokens=12, stop=("\u2603", stop))
        assert (text, reason) == (full[: full.index(stop)], "stop")
    assert words_of(made, max_tokens=12, stop=(full[-3:] + "!", ""))[0] == full, (
        "what was held back is given at the end"
    )


def choices(logits: Tensor, count: int = 3000, **settings: Any) -> Counter[int]:
    random = generator(0, "choices")
    config = GenerateConfig(**{"temperature": 1.0, **settings})
    return Counter(choose_token(logits, config, random) for _ in range(count))


def test_temperature_top_k_and_top_p_mean_what_they_say() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
    logits = probabilities.log()
    assert choices(logits, 5, temperature=0.0).keys() == {1}
    for token, count in choices(logits).items():
        assert count / 3000 == pytest.approx(float(probabilities[token]), abs=0.03)
    squared = probabilities.square() / probabilities.square().sum()
    for token, count in choices(logits, temperature=0.5).items():
        assert count / 3000 == pytest.approx(float(squared[token]), abs=0.03)
    assert choices(logits, 300, top_k=1).keys() == {1}
    assert choices(logits, 300, top_k=3).keys() == {1, 2, 3}
    assert choices(logits, 300, top_k=99).keys() == {0, 1, 2, 3, 4}
    assert choices(logits, 300, top_p=0.01).keys() == {1}
    assert choices(logits, 300, top_p=0.6).keys() == {1, 2}
    assert choices(logits, 300, top_p=0.66).keys() == {1, 2, 3}
    assert choices(logits, 300, top_k=2, top_p=0.99).keys() == {1, 2}
    kept = nucleus(probabilities.double(), 0.66)
    assert kept.nonzero()[:, 0].tolist() == [1, 2, 3]
    assert (choices(logits, 50, seed=3)) == choices(logits, 50, seed=4), "the generator alone decides"


def test_special_tokens_are_never_written() -> None:
    made = tiny.pretrained("causal", vocabulary=T.size + 7)
    written: set[int] = set()
    for seed in range(6):
        server = engine(made)
        server.add(request(made, WRITE, "text", seed=seed, temperature=50.0, max_tokens=100))
        (session,) = server.waiting
        while server.active or server.waiting:
            server.step()
        written |= set(session.tokens)
    assert len(written) > 100
    assert not written & set(T.special)
    assert max(written) < T.size


# --- what cannot be served ---


def refused(made: Pretrained, one: Request, message: str) -> None:
    server = engine(made)
    with pytest.raises(ValueError, match=message):
        server.add(one)
    assert not server.waiting
    assert sorted(server.free) == [0, 1, 2, 3]


def test_a_prompt_that_is_too_long_is_refused() -> None:
    made = tiny.pretrained()
    long = Document((Text("qz" * 100),))
    for want in ("text", "image", "any"):
        refused(made, request(made, long, want), "too many for the model's context of 160")
    fits = Document((Text("qz" * 77),))
    assert len(made.sequencer().prompt(fits)) == 155
    engine(made).run([request(made, fits, "text")])
    refused(made, request(made, fits, "image", size=(8, 8)), "and a picture of 4")


@pytest.mark.parametrize("want", ["image", "any"])
def test_a_size_that_was_not_trained_is_refused_at_once(want: str) -> None:
    made = tiny.pretrained()
    refused(
        made,
        request(made, DRAW, want, size=(16, 16)),
        r"not trained to draw 16x16 pictures \(height x width\); sizes are 8x8, 4x8, 12x8",
    )
    shown = Document((picture(0, (16, 16), role="user"), Text("blue", "user")))
    refused(made, request(made, shown, want), "not trained to draw 16x16")


@pytest.mark.parametrize(
    ("diffusion", "settings", "message"),
    [
        (DDPMConfig(), {"sampler": "euler"}, "ddim"),
        (DDPMConfig(), {"sampler": "heun"}, "ddim"),
        (DDPMConfig(steps=100), {"sampler": "ddim", "steps": 200}, "100"),
    ],
)
@pytest.mark.parametrize("want", ["image", "any"])
def test_a_sampler_that_does_not_fit_the_model_is_refused_at_once(
    diffusion: DiffusionConfig, settings: dict[str, Any], message: str, want: str
) -> None:
    made = tiny.pretrained(diffusion=diffusion)
    refused(made, request(made, DRAW, want, **settings), message)


def test_a_refused_list_leaves_nothing_waiting() -> None:
    made = tiny.pretrained()
    server = engine(made)
    with pytest.raises(ValueError, match="too many"):
        server.run([request(made, WRITE, "text"), request(made, Document((Text("qz" * 100),)), "text")])
    assert not server.waiting, "the next caller would pay for it"
    assert not server.active


def test_the_size_is_the_requests_else_the_last_pictures_else_the_default() -> None:
    made = tiny.pretrained()

    def size(document: Document, given: tuple[int, int] | None) -> tuple[int, ...]:
        return engine(made).run([request(made, document, "image", steps=1, size=given)])[0].images[0].pixels.shape[1:]

    assert size(DRAW, None) == (8, 8)
    assert size(EDIT, None) == (4, 8)
    assert size(EDIT, (12, 8)) == (12, 8)
