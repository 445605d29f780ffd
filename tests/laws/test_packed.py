"""Packed weights: the same layer, the same names, in both precisions and for any number of rows."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from monoformer.autoencoder import Pixels
from monoformer.generate.engine import Engine
from monoformer.model.packed import HINT, PackedLinear, can_pack, pack
from monoformer.randomness import generator
from tests import tiny
from tests.laws.test_generate import WRITE, request

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_is_plain(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this CPU packs no {dtype}")
    plain = torch.nn.Linear(48, 40).to(dtype)
    packed = PackedLinear(plain)
    assert packed.state_dict().keys() == plain.state_dict().keys()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for rows in (1, 3, HINT, 3 * HINT):
        x = torch.randn(rows, 1, 48, generator=generator(rows, "packed")).to(dtype)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), plain(x), rtol=tolerance, atol=tolerance)
    packed(x.float().to(dtype)).float().sum().backward()
    assert plain.weight.grad is not None, "they share their parameters"


def test_a_packed_model_keeps_its_names_and_writes_the_same() -> None:
    texts = []
    for is_packed in (False, True):
        made = tiny.pretrained("add")
        made = replace(made, model=deepcopy(made.model))
        before = {name: weight.clone() for name, weight in made.model.state_dict().items()}
        if is_packed:
            pack(made.model)
            assert any(isinstance(module, PackedLinear) for module in made.model.modules())
            assert not any(isinstance(module, torch.nn.Linear) for module in made.model.modules())
        after = made.model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        texts.append(Engine(made, Pixels(), slots=4).run([request(made, WRITE, "text", seed=n) for n in range(3)]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("assign", [False, True])
def test_other_weights_loaded_into_a_packed_model_are_the_ones_it_uses(assign: bool) -> None:
    made, other = (replace(own, model=deepcopy(own.model)) for own in [tiny.pretrained("add")] * 2)
    with torch.no_grad():
        for number, weight in enumerate(other.model.parameters()):
            weight += torch.randn(weight.shape, generator=generator(number, "other"))
    pack(made.model)
    made.model.load_state_dict(other.model.state_dict(), assign=assign)
    requests = [request(made, WRITE, "text", seed=n) for n in range(3)] + [request(made, WRITE, "image", steps=3)]
    loaded, fresh = (Engine(own, Pixels(), slots=8).run(requests) for own in (made, other))
    assert loaded[:3] == fresh[:3]
    torch.testing.assert_close(loaded[3].images[0].pixels.float(), fresh[3].images[0].pixels.float(), rtol=0, atol=1)
