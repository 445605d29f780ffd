"""Modality experts: copies compute what the shared network computes, each token once; frozen text keeps its bits."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, MuonConfig, OptimizerConfig, TrainConfig
from monoformer.document import Document, Text
from monoformer.model.experts import with_experts
from monoformer.model.monoformer import MonoFormer, is_text
from monoformer.pretrained import load_pretrained, save_pretrained
from monoformer.train.build import build_run
from monoformer.train.freeze import freeze_text, new_rows
from monoformer.train.optim import EMA
from monoformer.train.trainer import Trainer
from tests import tiny

EMBEDDINGS = ("tokens.weight", "text_head.weight")
T = tiny.tokenizer()
NEW = new_rows(tiny.model_config("experts"), T)
OLD = [token for token in range(T.size) if token not in NEW]


@pytest.mark.parametrize("mode", ["adaln", "token", "add", "causal", "unet"])
def test_experts_that_are_copies_change_nothing(mode: str) -> None:
    network = tiny.model(mode)
    grown = with_experts(network)
    assert (grown.text_head.weight is grown.tokens.weight) == network.config.tie_embeddings
    batch = tiny.in_rows(tiny.layouts(mode, 1, 8))
    assert len(batch.images) > 1
    expected, found = tiny.hidden_of(network, batch), tiny.hidden_of(grown, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    text = tiny.in_rows(tiny.layouts(mode, 0, 4, images=False))
    assert torch.equal(tiny.hidden_of(grown, text), tiny.hidden_of(network, text)), "text alone: the same code"


@pytest.mark.parametrize("time", ["adaln", "token"])
def test_every_token_passes_through_one_set_of_weights(time: str) -> None:
    network = tiny.model("experts", time=time)
    mode = "token" if time == "token" else "adaln"
    batch = tiny.in_rows(tiny.layouts(mode, 1, 8))
    seen: Counter[bool] = Counter()

    def count(is_expert: bool) -> Any:
        return lambda module, inputs, output: seen.update({is_expert: output.shape[:-1].numel()})

    for name, module in network.transformer.named_modules():
        if isinstance(module, nn.Linear) and "modulation" not in name:
            module.register_forward_hook(count(".image." in name))
    tiny.hidden_of(network, batch)
    images = int(((batch.ids == T.patch) | (batch.ids == T.time)).sum())
    linears = 7 * network.config.layers
    assert images > 0
    assert seen == {True: linears * images, False: linears * (batch.ids.numel() - images)}


def test_image_tokens_do_not_read_the_text_weights_but_for_attention() -> None:
    """An image that sees nothing before it is a function of the experts alone, and text of the text weights alone."""
    network = tiny.model("experts")
    own = tiny.sequencer()
    batch = tiny.in_rows([own.document(Document((Text("red"), tiny.image(Random(0)), Text("of"))))], rows=1)
    start = int(batch.images[0].start[0])
    before = tiny.hidden_of(network, batch)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not is_text(name):
                parameter.mul_(1.5)
    after = tiny.hidden_of(network, batch)
    assert torch.equal(after[:, :start], before[:, :start])
    assert (after[:, start:-3] != before[:, start:-3]).any(dim=-1).all()


def frozen_run(folder: Path, optimizer: OptimizerConfig, **model: Any) -> Trainer:
    config = tiny.run_config(
        folder, mode="experts", start="a text model", train={"freeze": "text", "optimizer": optimizer}
    )
    return tiny.trainer(config)


def old_logits(network: nn.Module, weights: dict[str, Tensor] | None = None) -> Tensor:
    """Logits of the old vocabulary over text-only documents, with the network's own weights or others."""
    copy = tiny.model("experts")
    copy.load_state_dict({**network.state_dict(), **(weights or {})})
    batch = tiny.in_rows(tiny.layouts("adaln", 0, 6, images=False))
    with torch.no_grad():
        return copy.text(tiny.hidden_of(copy, batch))[..., OLD]


OPTIMIZERS = [AdamWConfig(rate=1e-2, weight_decay=0.1), MuonConfig(rate=0.02, adamw_rate=1e-2, weight_decay=0.1)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_frozen_text_keeps_its_bits_and_the_rest_learns(optimizer: OptimizerConfig, tmp_path: Path) -> None:
    trainer = frozen_run(tmp_path / "run", optimizer)
    network = trainer.model
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    logits = old_logits(network)
    assert trainer.run()
    averaged = trainer.state.ema.weights
    assert torch.equal(old_logits(network), logits)
    assert torch.equal(old_logits(network, averaged), logits), "the averaged weights neither"
    for name, p in network.named_parameters():
        assert (name in averaged) == p.requires_grad
        for now in (p.detach(), averaged.get(name, p.detach())):
            if name in EMBEDDINGS:
                assert torch.equal(now[OLD], before[name][OLD]), name
                moved = (now != before[name]).any(dim=1)
                assert moved[[T.boi, T.eoi] if name == "tokens.weight" else NEW].all(), name
            elif is_text(name):
                assert torch.equal(now, before[name]), name
            else:
                assert not torch.equal(now, before[name]), name


def test_old_rows_get_no_gradient_and_frozen_weights_none(tmp_path: Path) -> None:
    trainer = frozen_run(tmp_path / "run", AdamWConfig())
    text, image = trainer.losses(next(trainer.parts.loader))
    (text + image).backward()
    trainer.parts.loader.close()
    for name, p in trainer.model.named_parameters():
        if name in EMBEDDINGS:
            assert p.grad is not None
            assert not p.grad[OLD].any()
            assert p.grad[T.boi].any()
        else:
            assert (p.grad is None) == is_text(name), name
    trained = {id(p) for o in trainer.state.optimizers for group in o.param_groups for p in group["params"]}
    decayed = {
        id(p) for o in trainer.state.optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]
    }
    for name, p in trainer.model.named_parameters():
        assert (id(p) in trained) == (name in EMBEDDINGS or not is_text(name))
        assert id(p) not in decayed or name not in EMBEDDINGS


def test_the_average_of_a_weight_that_stays_is_that_weight() -> None:
    network = tiny.model("experts")
    ema = EMA(network)
    for _ in range(50):
        ema.update(network)
    assert all(torch.equal(ema.weights[name], p) for name, p in network.named_parameters())


def test_new_rows_are_the_image_tokens_and_what_the_vocabulary_grew_by() -> None:
    assert set(NEW) == {T.boi, T.eoi, T.patch, T.time}
    grown = tiny.model_config("experts", vocabulary=T.size, text_vocabulary=T.size - 3)
    assert set(new_rows(grown, T)) == {*NEW, T.size - 3, T.size - 2, T.size - 1}
    with pytest.raises(ValueError, match=r"between 0 and model\.vocabulary, but is 5 of 3"):
        tiny.model_config(vocabulary=3, text_vocabulary=5)


def test_freezing_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"experts = shared; add --model\.experts modality"):
        freeze_text(tiny.model("adaln"), rows=NEW)
    with pytest.raises(ValueError, match="give one with --from"):
        RunConfig(train=TrainConfig(freeze="text"))


def start(tmp_path: Path, **changes: Any) -> RunConfig:
    """A run on tiny scenes that starts from a model folder whose network has no experts."""
    save_pretrained(tmp_path / "text", tiny.pretrained("adaln", image_sizes=((16, 16),)))
    settings: dict[str, Any] = {
        "steps": 2,
        "warmup": 1,
        "rows": 2,
        "precision": "fp32",
        "device": "cpu",
        "freeze": "text",
    }
    return RunConfig(
        folder=str(tmp_path / "run"),
        start=str(tmp_path / "text"),
        model=tiny.model_config("adaln", **changes),
        data=ScenesData(size=16, objects=(1, 1), draw=1, describe=1, edit=0, question=0, story=0),
        sequence=SequenceConfig(row=128, window=8),
        train=TrainConfig(**settings),
    )


def test_a_run_from_a_text_model_copies_its_weights_to_the_experts_and_keeps_its_text(tmp_path: Path) -> None:
    built = build_run(start(tmp_path, experts="modality"))
    assert "image experts start as copies of the text weights" in built.news
    network, before = built.parts.model, load_pretrained(tmp_path / "text").model
    assert isinstance(network, MonoFormer)
    assert built.parts.config.model.experts == "modality"
    own, text = network.state_dict(), before.state_dict()
    for name in own:
        assert torch.equal(own[name], text[name.replace(".image.", ".").replace("image_norm", "norm")]), name
    assert Trainer(built.parts).run()
    batch = tiny.in_rows(tiny.layouts("adaln", 0, 4, images=False))
    with torch.no_grad():
        logits = [m.text(tiny.hidden_of(m, batch))[..., OLD] for m in (network.eval(), before)]
    assert torch.equal(logits[0], logits[1]), "the folder that was started from and the trained network"
    save_pretrained(tmp_path / "trained", built.pretrained)
    assert load_pretrained(tmp_path / "trained").model.config.experts == "modality"


def test_a_run_whose_model_has_no_experts_cannot_freeze(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="experts = shared"):
        build_run(start(tmp_path))
