"""Compiled decoding: what the network computes, two graphs whatever comes and goes, sessions alone and in a crowd."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch

from monoformer.autoencoder import Pixels
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, read
from monoformer.generate.session import Request
from monoformer.model.decoding import Decoder, check_compiles, graphs
from monoformer.model.packed import can_pack, pack
from monoformer.pipeline import Pipeline
from monoformer.pretrained import Pretrained
from monoformer.randomness import generator
from tests import tiny
from tests.laws.test_deterministic import telling
from tests.laws.test_generate import CAPTION, DRAW, WRITE, assert_same_picture, events_of, request

pytestmark = pytest.mark.filterwarnings("ignore")  # what the compiler says of itself


def compilable() -> bool:
    try:
        check_compiles(torch.device("cpu"))
    except ValueError:
        return False
    return True


def needs_compiler(test: Callable[..., None]) -> Callable[..., None]:
    """Compiling takes up to minutes where nothing is known from before."""
    return pytest.mark.slow(pytest.mark.skipif(not compilable(), reason="there is no C++ compiler")(test))


@cache
def packed() -> Pretrained:
    """Grouped keys, and weights twice where that is possible."""
    made = tiny.pretrained("token")
    made = replace(made, model=deepcopy(made.model))
    if can_pack():
        pack(made.model)
    return made


@cache
def engines(*, deterministic: bool = False) -> tuple[Engine, Engine]:
    """An eager one and a compiled one, after its warm-up."""
    eager, compiled = (
        Engine(packed(), Pixels(), slots=8, deterministic=deterministic, compile=compile) for compile in (False, True)
    )
    return eager, compiled


def texts(count: int, *, seed: int = 0, **settings: object) -> list[Request]:
    """Requests of many lengths."""
    random = Random(seed)
    found = []
    for number in range(count):
        words = " ".join(random.choices(tiny.WORDS, k=random.randint(1, 12)))
        tokens = random.randint(1, 40)
        found.append(request(packed(), Document((Text(words),)), "text", seed=number, max_tokens=tokens, **settings))
    return found


@needs_compiler
@pytest.mark.parametrize("mode", ["adaln", "experts", "official"])
def test_compiled_is_eager(mode: str) -> None:
    """States and what the cache then holds, for one row and several, beside each other and apart, short and full."""
    made = tiny.pretrained(mode)
    network: Network = Engine(made, Pixels(), slots=6).network
    for tensor in (network.cache.keys, network.cache.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator(0, "cache")))
    compiled = replace(network, decoder=Decoder(made.model, network.cache))
    before = graphs()
    rows = [([0], [1]), ([0, 1], [5, 5]), ([4, 1, 3], [7, 90, 30]), ([2], [159]), ([5], [0]), (list(range(6)), [2] * 6)]
    for slots, lengths in rows:
        found = []
        for one in (network, compiled):
            contexts = [Context(slot, length, length) for slot, length in zip(slots, lengths, strict=True)]
            states = read(one, contexts, [context.following(7 + context.slot) for context in contexts])
            assert [(context.length, context.position) for context in contexts] == [(n + 1, n + 1) for n in lengths]
            found.append((states, network.cache.keys.clone(), network.cache.values.clone()))
        for eager, own in zip(*found, strict=True):
            torch.testing.assert_close(own, eager, rtol=1e-5, atol=1e-5)
    assert graphs() - before == 2


@needs_compiler
def test_the_warm_up_compiles_all_and_says_so() -> None:
    """Requests of many lengths come and go, in crowds and alone, some of them draw: nothing more is compiled."""
    eager, compiled = engines()
    assert compiled.network.decoder is not None
    assert compiled.network.decoder.warmed.graphs == 2
    assert "2 graphs in" in str(compiled.network.decoder.warmed)
    before = graphs()
    mixed = [*texts(14, temperature=0.0), request(packed(), DRAW, "image"), request(packed(), CAPTION, "text")]
    for one, other in zip(compiled.run(mixed), eager.run(mixed), strict=True):
        if one.images:
            assert_same_picture(one.images[0], other.images[0])
        else:
            assert one == other, "greedy text is the same"
    with ThreadPoolExecutor() as threads:  # a server's engine runs in a thread of its own
        again = texts(4, temperature=0.0)
        assert threads.submit(compiled.run, again).result() == eager.run(again)
    assert graphs() == before


@needs_compiler
def test_alone_is_in_a_crowd() -> None:
    _, compiled = engines()
    requests = [*texts(9, seed=1, temperature=0.8), request(packed(), DRAW, "any", seed=3)]
    crowd = compiled.run(requests)
    for one, made in zip(requests, crowd, strict=True):
        (alone,) = compiled.run([one])
        assert [s.text for s in alone.segments if isinstance(s, Text)] == [
            s.text for s in made.segments if isinstance(s, Text)
        ]


@needs_compiler
def test_a_deterministic_engine_keeps_its_bits() -> None:
    _, compiled = engines(deterministic=True)
    assert compiled.network.decoder is not None
    assert compiled.network.decoder.warmed.graphs == 1

    def bits(requests: list[Request]) -> list[list[object]]:
        compiled.reset()
        numbers = [compiled.add(telling(one)) for one in requests]
        events = events_of(compiled)
        return [[e.scores for e in events if e.session == number and e.kind == "text"] for number in numbers]

    before = graphs()
    requests = texts(9, seed=2, temperature=0.8)
    alone = [bits([one])[0] for one in requests]
    assert bits(requests) == alone
    assert bits(requests[::-1])[::-1] == alone
    assert graphs() == before


@needs_compiler
def test_two_engines_have_graphs_of_their_own() -> None:
    """The weights are not among what is checked before a pass, so one model's graph must never meet another's."""
    prompt = [request(tiny.pretrained("adaln"), WRITE, "text", temperature=0.0)]
    _, compiled = engines()
    first = compiled.run(texts(2, temperature=0.0))
    other = Engine(tiny.pretrained("adaln"), Pixels(), slots=8, compile=True)
    assert other.run(prompt) == Engine(tiny.pretrained("adaln"), Pixels(), slots=8).run(prompt)
    assert compiled.run(texts(2, temperature=0.0)) == first


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"there is no no-such-compiler; install one .*apt install g\+\+"):
        Pipeline.from_pretrained("no-such-folder", device="cpu", compile=True)
    with pytest.raises(ValueError, match="compile is for CPUs and CUDA"):
        check_compiles(torch.device("meta"))
