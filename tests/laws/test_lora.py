"""Adapters: they begin as nothing, train alone, resume exactly, and are gone when the model is saved."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from monoformer.cli.training import run
from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import LoRAConfig, MuonConfig
from monoformer.model.monoformer import MonoFormer, is_text
from monoformer.pretrained import export_llama, load_pretrained, save_pretrained
from monoformer.train.build import Built, build_run
from monoformer.train.metrics import read_metrics
from monoformer.train.optim import is_hidden_matrix
from monoformer.train.parallel import Ranks, local
from monoformer.train.trainer import Trainer
from tests import tiny
from tests.ranks import together

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHAPE: dict[str, Any] = {"image_sizes": ((16, 16),), "context": 256}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models to start from, by mode."""
    root = tmp_path_factory.mktemp("base")
    for mode in ("token", "experts"):
        save_pretrained(root / mode, tiny.pretrained(mode, **SHAPE))
    return {mode: root / mode for mode in ("token", "experts")}


def config_of(folder: Path, start: Path, *, lora: LoRAConfig | None = None, **train: Any) -> RunConfig:
    return tiny.run_config(
        folder,
        start=str(start),
        model=tiny.model_config("token", **SHAPE),
        data=ScenesData(size=16, objects=(1, 1), draw=1, describe=1, edit=0, question=0, story=0),
        sequence=SequenceConfig(row=128, window=8),
        train={"lora": lora or LoRAConfig(rank=4), "steps": 3, **train},
    )


def hidden(network: MonoFormer) -> Tensor:
    return tiny.hidden_of(network, tiny.in_rows(tiny.layouts("token", 0, 6)))


def plain_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the frozen weights under their own names."""
    return {
        name.replace(".base_layer.", "."): p.detach().clone()
        for name, p in network.named_parameters()
        if ".lora_" not in name
    }


def finished(config: RunConfig) -> tuple[Built, Trainer]:
    built = build_run(config)
    trainer = Trainer(built.parts)
    assert trainer.run()
    return built, trainer


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("mode", ["token", "experts"])
def test_it_begins_as_the_base_bit_for_bit(mode: str, folders: dict[str, Path], tmp_path: Path) -> None:
    base = load_pretrained(folders[mode]).model
    state = torch.get_rng_state()
    built = build_run(config_of(tmp_path, folders[mode]))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(hidden(built.parts.model.eval()), hidden(base))
    assert equal(built.plain(built.parts.model.state_dict()), base.state_dict())
    assert "adapters of rank 4 in" in built.news
    matrices = 7 * base.config.layers * (2 if mode == "experts" else 1)
    assert sum(name.endswith("lora_A.default.weight") for name, _ in built.parts.model.named_parameters()) == matrices


def test_adapters_train_alone_and_are_merged_when_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    base = load_pretrained(folders["token"]).model
    config = config_of(tmp_path / "run", folders["token"], optimizer=MuonConfig(adamw_rate=1e-2))
    built = build_run(config)
    assert run(built)
    adapted = built.parts.model.eval()
    assert equal(plain_of(adapted), dict(base.named_parameters()))
    moved = [p for name, p in adapted.named_parameters() if name.endswith("lora_B.default.weight")]
    assert all(p.detach().any() for p in moved)
    names = dcp.FileSystemReader(str(tmp_path / "run" / "checkpoints" / "step-00000003")).read_metadata()
    stored = {name.split(".", 1)[1] for name in names.state_dict_metadata if name.startswith(("model.", "ema."))}
    assert stored
    assert all(".lora_" in name for name in stored)

    saved = load_pretrained(tmp_path / "run" / "model").model
    assert saved.state_dict().keys() == base.state_dict().keys()
    assert not torch.equal(hidden(saved), hidden(base))
    export_llama(tmp_path / "llama", saved, built.pretrained.tokenizer)
    assert (tmp_path / "llama" / "model.safetensors").is_file()


def test_the_merged_network_computes_what_the_adapted_one_does(folders: dict[str, Path], tmp_path: Path) -> None:
    built, trainer = finished(config_of(tmp_path, folders["experts"], lora=LoRAConfig(rank=2, alpha=6)))
    network = built.parts.model.eval()
    before = hidden(network)
    network.load_state_dict({**network.state_dict(), **trainer.state.ema.weights})
    averaged = hidden(network)
    assert not torch.equal(before, averaged)
    plain = tiny.model("experts", **SHAPE)
    plain.load_state_dict(built.plain(trainer.state.averaged()))
    torch.testing.assert_close(hidden(plain), averaged, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    _, straight = finished(config_of(tmp_path / "straight", folders["token"], steps=4))
    finished(config_of(tmp_path / "broken", folders["token"], steps=2))
    _, resumed = finished(config_of(tmp_path / "broken", folders["token"], steps=4))
    assert equal(resumed.model.state_dict(), straight.model.state_dict())
    assert equal(resumed.state.ema.weights, straight.state.ema.weights)
    start = tmp_path / "base"
    save_pretrained(start, tiny.pretrained("token", **SHAPE))
    config = config_of(tmp_path / "moved", start, steps=1)
    finished(config)
    other = tiny.pretrained("token", **SHAPE)
    with torch.no_grad():
        other.model.transformer.norm.weight.mul_(1.01)
    save_pretrained(start, other)
    with pytest.raises(ValueError, match="model that the run starts from has changed"):
        finished(replace(config, train=replace(config.train, steps=2)))


def test_the_optimizer_holds_the_adapters_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    sizes = []
    for rank in (0, 1):
        _, trainer = finished(config_of(tmp_path / str(rank), folders["token"], lora=LoRAConfig(rank=rank), steps=1))
        states = [state for optimizer in trainer.state.optimizers for state in optimizer.state.values()]
        sizes.append(sum(value.numel() for state in states for value in state.values()))
    assert 0 < sizes[1] < sizes[0] / 10


def test_frozen_text_has_adapters_in_its_image_experts_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    base = load_pretrained(folders["experts"]).model
    built, trainer = finished(config_of(tmp_path / "run", folders["experts"], freeze="text"))
    whole = built.plain(trainer.state.averaged())
    for name, value in base.named_parameters():
        is_adapted = not is_text(name) and is_hidden_matrix(name, value)
        assert torch.equal(whole[name], value) != is_adapted, name
    for wrong in (folders["token"], folders["experts"]):
        lora = LoRAConfig(rank=4, images="adapters" if wrong == folders["token"] else "whole")
        with pytest.raises(ValueError, match="has no matrix to adapt"):
            build_run(config_of(tmp_path / "no", wrong, lora=lora, freeze="text"))


def test_from_a_language_model_the_new_parts_are_trained_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    base = load_pretrained(folders["token"])
    export_llama(tmp_path / "llama", base.model, base.tokenizer)
    with pytest.raises(ValueError, match=r"add --train\.lora\.images whole"):
        build_run(config_of(tmp_path / "run", tmp_path / "llama"))
    lora = LoRAConfig(rank=4, images="whole", matrices=("q", "v"))
    built = build_run(config_of(tmp_path / "run", tmp_path / "llama", lora=lora))
    before = {name: value.clone() for name, value in built.plain(built.parts.model.state_dict()).items()}
    trainer = Trainer(built.parts)
    assert trainer.run()
    new = [built.pretrained.tokenizer.boi, built.pretrained.tokenizer.eoi]
    old = [row for row in range(60, 200) if row not in new]
    for name, value in built.plain(built.parts.model.state_dict()).items():
        if name in ("tokens.weight", "text_head.weight"):
            assert torch.equal(value[old], before[name][old])
            assert not torch.equal(value[new], before[name][new])
        else:
            adapted = name.endswith(("attention.q.weight", "attention.v.weight"))
            assert torch.equal(value, before[name]) == (is_text(name) and not adapted), name


def finish_apart(ranks: Ranks, configs: tuple[RunConfig, ...]) -> None:
    """In every process: each run to its half and on to its end; the first writes the merged averages."""
    for config in configs:
        for steps in (2, 4):
            built = build_run(replace(config, train=replace(config.train, steps=steps)), ranks=ranks)
            trainer = Trainer(built.parts)
            assert trainer.run()
        held = sum(local(p.detach()).numel() for p in trainer.model.parameters())
        assert held < 0.7 * sum(p.numel() for p in trainer.model.parameters()), "a process holds its part alone"
        weights = ranks.whole(trainer.state.averaged())
        if ranks.first:
            save_file({name: p.contiguous() for name, p in built.plain(weights).items()}, config.path / "merged")


def test_two_processes_that_hold_the_network_in_parts_train_as_one(folders: dict[str, Path], tmp_path: Path) -> None:
    cases = {"experts": LoRAConfig(rank=4), "token": LoRAConfig(rank=4, images="whole")}
    train = {"steps": 4, "pass_rows": 1}
    alone = [config_of(tmp_path / mode, folders[mode], lora=lora, **train) for mode, lora in cases.items()]
    fsdp = ParallelConfig(strategy="fsdp")
    apart = tuple(
        replace(config, folder=f"{config.folder}-apart", train=replace(config.train, parallel=fsdp)) for config in alone
    )
    together(finish_apart, apart, world=2)
    names = ("text_loss", "image_loss", "gradient_norm")
    for one, two in zip(alone, apart, strict=True):
        built, trainer = finished(one)
        lines = [[[line[n] for n in names] for line in read_metrics(run.path / "metrics.jsonl")] for run in (two, one)]
        torch.testing.assert_close(*lines, rtol=1e-5, atol=0.0)
        found, expected = load_file(two.path / "merged"), built.plain(trainer.state.averaged())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0.0, atol=1e-4, msg=name)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="does nothing at rank 0"):
        LoRAConfig(alpha=8)
    with pytest.raises(ValueError, match="give one with --from"):
        tiny.run_config(Path("run"), train={"lora": LoRAConfig(rank=4)})
