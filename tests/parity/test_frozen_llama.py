"""A language model that learned pictures, its text path frozen: for text still that of transformers, and given back.

`experts = modality`, `freeze = text` (LMFusion, arXiv 2412.15188) from a Hugging Face folder, on pictures and text.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, MuonConfig, OptimizerConfig, TrainConfig
from monoformer.model.monoformer import MonoFormer, is_text
from monoformer.pretrained import export_llama, load_pretrained, save_pretrained
from monoformer.train.build import Built, build_run
from monoformer.train.trainer import Trainer
from tests.parity.test_llama import FAMILY, VOCABULARY, assert_close, load, our_logits, save, their_logits, tokens

EMBEDDINGS = ("tokens.weight", "text_head.weight")
IMAGE_SIDE: dict[str, Any] = {"patch": 4, "context": 512, "image_sizes": ((16, 16),)}
ADAMW = AdamWConfig(rate=1e-2, weight_decay=0.1)
MUON = MuonConfig(rate=0.02, adamw_rate=1e-2, weight_decay=0.1)


def learn_pictures(start: Path, folder: Path, optimizer: OptimizerConfig) -> Built:
    """Five steps on scenes drawn, described and changed, and on stories without a picture."""
    config = RunConfig(
        folder=str(folder),
        start=str(start),
        model=ModelConfig(experts="modality", **IMAGE_SIDE),
        data=ScenesData(size=16, objects=(1, 1), draw=2, describe=1, edit=1, question=0, story=1),
        sequence=SequenceConfig(row=320, window=16),
        train=TrainConfig(
            steps=5, warmup=1, rows=2, optimizer=optimizer, precision="fp32", device="cpu", freeze="text"
        ),
    )
    built = build_run(config)
    trainer = Trainer(built.parts)
    assert trainer.run()
    lines = (folder / "metrics.jsonl").read_text()
    assert '"text_loss": 0.0' not in lines, "every step read text and drew pictures"
    assert '"image_loss": 0.0' not in lines
    averaged = {**built.parts.model.state_dict(), **trainer.state.ema.weights}
    built.parts.model.eval()
    save_pretrained(folder / "averaged", built.pretrained, weights=averaged)
    return built


def changed(network: nn.Module, before: nn.Module) -> set[str]:
    """Names of the parameters that are not the same to the last bit; `before` has no experts."""
    own, old = dict(network.named_parameters()), dict(before.named_parameters())
    return {name for name in own if not (name in old and torch.equal(own[name], old[name]))}


CASES = [("llama", ADAMW), ("llama", MUON), ("llama-tied", ADAMW), ("llama-biased", ADAMW), ("qwen3", ADAMW)]


@pytest.mark.parametrize(("kind", "optimizer"), CASES, ids=lambda case: getattr(type(case), "__name__", None))
def test_text_is_that_of_transformers_after_pictures_were_learned(
    kind: str, optimizer: OptimizerConfig, tmp_path: Path
) -> None:
    theirs = save(tmp_path / "theirs", FAMILY[kind])
    before, ids = load(tmp_path / "theirs", **IMAGE_SIDE), tokens()
    expected, own = their_logits(theirs, ids), our_logits(before.model, ids)[..., :VOCABULARY]
    built = learn_pictures(tmp_path / "theirs", tmp_path / "run", optimizer)
    trained, averaged = built.parts.model, load_pretrained(tmp_path / "run" / "averaged").model
    for network in (trained, averaged):
        assert isinstance(network, MonoFormer)
        learned = changed(network, before.model)
        assert {name for name in learned if is_text(name)} <= set(EMBEDDINGS)
        assert any(".image." in name for name in learned)
        assert any(not is_text(name) and ".image." not in name for name in learned), "the image side has learned"
        logits = our_logits(network, ids)[..., :VOCABULARY]
        assert torch.equal(logits, own), "old vocabulary, text alone: the same bits as before training"
        assert_close(logits, expected)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "llama-biased", "qwen3"])
def test_export_gives_the_language_model_back(kind: str, tmp_path: Path) -> None:
    theirs = save(tmp_path / "theirs", FAMILY[kind])
    built = learn_pictures(tmp_path / "theirs", tmp_path / "run", ADAMW)
    network, tokenizer = built.parts.model, built.pretrained.tokenizer
    assert isinstance(network, MonoFormer)
    export_llama(tmp_path / "back", network, tokenizer)
    back, report = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    assert type(back) is type(theirs)
    found, given = back.state_dict(), theirs.state_dict()
    assert set(found) == set(given), "no tensor of the image side"
    for name, original in given.items():
        assert torch.equal(rows(found[name], original), original), name
    back.resize_token_embeddings(VOCABULARY)  # the new tokens' rows are the last ones: without them it is the original
    assert torch.equal(their_logits(back, tokens()), their_logits(theirs, tokens()))


def rows(found: Tensor, original: Tensor) -> Tensor:
    """The part of a tensor that the original has: all of it, or its rows of the vocabulary."""
    grown = len(found) - len(original)
    assert grown in (0, 7), "four image tokens and three roles"
    return found[: len(original)]
