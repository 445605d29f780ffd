"""A deterministic engine gives the same bits alone, among others, in any order, and with any number of slots."""

from dataclasses import replace

import pytest

from monoformer.autoencoder import Pixels
from monoformer.document import Image
from monoformer.generate.buckets import TOKENS, Buckets, rounded
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request
from monoformer.pretrained import Pretrained
from tests import tiny
from tests.laws.test_generate import assert_same_picture, engine, events_of, mixed


def bits(made: Pretrained, requests: list[Request], slots: int, *, deterministic: bool = True) -> list[list[object]]:
    """Every estimate of every picture, every token with its log-probability, and what was made."""
    vision = tiny.vision_of(made.model.config)
    server = Engine(made, Pixels(), vision=vision, slots=slots, deterministic=deterministic)
    numbers = [server.add(one) for one in requests]
    found: dict[int, list[object]] = {number: [] for number in numbers}
    for event in events_of(server):
        latent = [] if event.preview is None else event.preview.latent.tolist()
        pixels = [] if event.image is None else event.image.pixels.tolist()
        found[event.session] += [event.kind, event.text, event.scores, latent, pixels]
    return [found[number] for number in numbers]


def telling(one: Request) -> Request:
    if one.want == "image":
        return replace(one, previews=1)
    return replace(one, log_probabilities=2, prompt_log_probabilities=True, previews=int(one.want == "any"))


@pytest.mark.parametrize("mode", ["adaln", "vision"])
def test_the_same_bits_alone_and_among_others(mode: str) -> None:
    made = tiny.pretrained(mode)
    requests = [telling(one) for one in mixed(made)]
    alone = [bits(made, [one], 4)[0] for one in requests]
    assert bits(made, requests, 16) == alone
    assert bits(made, requests[::-1], 3)[::-1] == alone


def test_padding_changes_no_more_than_the_last_bits() -> None:
    made = tiny.pretrained()
    requests = mixed(made)[:5]
    padded = Engine(made, Pixels(), slots=8, deterministic=True).run(requests)
    for one, other in zip(padded, engine(made, slots=8).run(requests), strict=True):
        for a, b in zip(one.segments, other.segments, strict=True):
            if isinstance(a, Image):
                assert isinstance(b, Image)
                assert_same_picture(a, b)
            else:
                assert a == b


def test_groups_have_one_shape_and_a_limit() -> None:
    assert Buckets.groups(["a", "b", "a", "a"], most=2) == [[0, 2], [3], [1]]
    assert [rounded(n) for n in (0, 1, 2, TOKENS, TOKENS + 1)] == [0, 1, TOKENS, TOKENS, 2 * TOKENS]
    assert rounded(TOKENS + 1, most=100) == 100
