"""Training an autoencoder: resumes bit for bit, learns, and leaves a folder whose latents have unit scale."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from monoformer.autoencoder import LatentAutoencoder, build_autoencoder
from monoformer.cli.main import main
from monoformer.config.autoencoder import AutoencoderConfig, AutoencoderRun
from monoformer.config.data import MixtureData, ScenesData, TextData
from monoformer.config.run import from_json, load_config_of, to_json
from monoformer.config.train import AdamWConfig, MuonConfig, TrainConfig
from monoformer.presets import autoencoder
from monoformer.train.autoencoder import (
    AutoencoderTrainer,
    build_features,
    build_network,
    build_pictures,
    perceptual_distance,
)
from monoformer.train.metrics import CLOCK, read_metrics
from monoformer.train.reconstruction import release
from tests import latents

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SCENES = ScenesData(size=16, objects=(1, 2), story=0.0)


def config_of(folder: Path, *, train: dict[str, Any] | None = None, **changes: Any) -> AutoencoderRun:
    settings: dict[str, Any] = {
        "steps": 4, "rows": 3, "warmup": 2, "schedule": "constant", "log_every": 1, "checkpoint_every": 2,
        "precision": "fp32", "device": "cpu", "optimizer": AdamWConfig(rate=3e-3),
    }  # fmt: skip
    config = AutoencoderRun(
        folder=str(folder), data=SCENES, widths=(8, 16), groups=4, train=TrainConfig(**{**settings, **(train or {})})
    )
    return replace(config, **changes)


def trained(config: AutoencoderRun) -> AutoencoderTrainer:
    trainer = AutoencoderTrainer(config)
    assert trainer.run()
    return trainer


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    straight = trained(config_of(tmp_path / "straight", perceptual="tests.latents:edges"))
    first = config_of(tmp_path / "broken", perceptual="tests.latents:edges", train={"steps": 2})
    trained(first)
    resumed = trained(replace(first, train=replace(first.train, steps=4)))
    for ours, theirs in (
        (resumed.network.state_dict(), straight.network.state_dict()),
        (resumed.state.ema.weights, straight.state.ema.weights),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    lines = [
        [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("straight", "broken")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4]
    assert {"l1_loss", "kl", "psnr", "perceptual_loss", "gradient_norm"} <= lines[0][0].keys()
    assert (tmp_path / "broken" / "curves.png").is_file()
    with pytest.raises(ValueError, match="holds another run: kl_weight was 1e-06 and is now"):
        AutoencoderTrainer(replace(first, kl_weight=0.5)).run()


def test_a_run_that_left_its_precision_open_goes_on_as_it_began(tmp_path: Path) -> None:
    first = config_of(tmp_path, train={"steps": 2, "precision": "bf16"})
    trained(first)
    assert not trained(replace(config_of(tmp_path / "other"), train=replace(first.train, precision="fp32"))).bf16
    assert AutoencoderTrainer(replace(first, train=replace(first.train, steps=4, precision="auto"))).bf16
    assert load_config_of(AutoencoderRun, tmp_path / "config.json").train.precision == "bf16"


def test_losses_depend_on_the_pictures_and_not_on_their_order(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    trainer = AutoencoderTrainer(config)
    pictures = next(build_pictures(config))
    first, second = trainer.losses(pictures), trainer.losses(pictures[::-1])
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6)
    renumbered = [replace(picture, document=picture.document + 100) for picture in pictures]
    assert float(trainer.losses(renumbered)["l1_loss"].detach()) != float(first["l1_loss"].detach())


def test_it_learns_its_pictures(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    trainer = AutoencoderTrainer(config)
    pictures = next(build_pictures(config))
    errors = [trainer.train_step(pictures)["l1_loss"] for _ in range(40)]
    assert errors[-1] < 0.5 * errors[0]


def test_pieces_are_squares_of_their_pictures_and_always_the_same(tmp_path: Path) -> None:
    whole, config = config_of(tmp_path), config_of(tmp_path, crop=8)
    first, again = next(build_pictures(config)), next(build_pictures(config))
    places = set()
    for piece, same, picture in zip(first, again, next(build_pictures(whole)), strict=True):
        assert torch.equal(piece.pixels, same.pixels)
        assert piece.pixels.shape == (3, 8, 8)
        windows = picture.pixels.unfold(1, 8, 1).unfold(2, 8, 1).movedim(0, 2)  # (9, 9, 3, 8, 8)
        found = (windows == piece.pixels).flatten(2).all(2).nonzero().tolist()
        assert found
        places.add(tuple(found[0]))
    assert len(places) > 1
    with pytest.raises(ValueError, match="crop is 32 pixels, but pictures are 16x16"):
        build_network(replace(config, crop=32))


def test_muon_trains_the_kernels_within(tmp_path: Path) -> None:
    config = config_of(tmp_path, train={"optimizer": MuonConfig()})
    trainer = AutoencoderTrainer(config)
    muon, adamw = trainer.state.optimizers
    kernels = [p for group in muon.param_groups for p in group["params"]]
    assert {p.ndim for p in kernels} == {4}
    ours = {id(p) for p in kernels}
    names = {name for name, p in trainer.network.named_parameters() if id(p) not in ours and p.ndim == 4}
    ends = {f"{half}.{end}" for half in ("encoder", "decoder") for end in ("conv_in", "conv_out")}
    assert {name.removesuffix(".weight") for name in names} == {*ends, "quant_conv", "post_quant_conv"}
    assert len(ours) + sum(len(g["params"]) for g in adamw.param_groups) == len(list(trainer.network.parameters()))
    pictures = next(build_pictures(config))
    errors = [trainer.train_step(pictures)["l1_loss"] for _ in range(40)]
    assert errors[-1] < 0.5 * errors[0]


def test_weights_come_from_the_seed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    states = [build_network(replace(config, seed=seed)).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["encoder.conv_in.weight"], states[2]["encoder.conv_in.weight"])


def test_the_perceptual_term(tmp_path: Path) -> None:
    features = build_features("tests.latents:edges", torch.device("cpu"))
    assert features is not None
    x = latents.pictures(2, size=(16, 16)).float() / 127.5 - 1
    assert float(perceptual_distance(features, x, x)) == 0
    y = x.clone().requires_grad_()
    distance = perceptual_distance(features, y.flip(-1), x)
    assert 0 < float(distance.detach()) < 4
    distance.backward()
    assert y.grad is not None
    assert float(y.grad.abs().sum()) > 0
    for path in ("tests.nothing:edges", "tests.latents:nothing", "tests.latents", "tests.latents:pictures"):
        with pytest.raises(ValueError, match=r"perceptual is .*module"):
            build_features(path, torch.device("cpu"))


def test_the_released_folder_has_latents_of_unit_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoformer.train.reconstruction.FIGURES", 8)
    config = config_of(tmp_path / "run", train={"steps": 2})
    folder = release(config, trained(config).state.ema.weights)
    made = build_autoencoder(AutoencoderConfig(path=str(folder), posterior="sample"))
    assert (made.channels, made.down) == (4, 2)
    loader = build_pictures(replace(config, train=replace(config.train, rows=64)))
    mean, deviation = made.moments(torch.stack([picture.pixels for picture in next(loader)]))
    loader.close()
    assert deviation is not None
    assert abs(float(mean.mean())) < 0.1
    assert 0.9 < float((mean.var() + deviation.square().mean()).sqrt()) < 1.1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| scenes | " in card
    assert "--autoencoder.path" in card
    with PILImage.open(folder / "reconstructions.png") as picture:
        assert picture.width > 500
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors", ".md", ".png"}


def test_the_preset_is_small_enough_to_be_released() -> None:
    config = autoencoder()
    assert from_json(AutoencoderRun, json.loads(json.dumps(to_json(config)))) == config
    network = build_network(config)
    count = sum(p.numel() for p in network.parameters())
    assert 1e6 < count < 3e6
    assert 2 * count < 8e6  # bytes in bf16
    assert (LatentAutoencoder(network).channels, LatentAutoencoder(network).down) == (4, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8, 12), "groups": 8}, "groups must divide"),
        ({"widths": ()}, "groups must divide"),
        ({"channels": 0}, "channels"),
        ({"kl_weight": -1.0}, "0 or more"),
        ({"perceptual_weight": 0.5}, "does nothing without perceptual"),
        ({"crop": 12}, "crop must be 0 or a multiple of the 8 pixels of a cell"),
        ({"train": TrainConfig(optimizer=AdamWConfig(), text_weight=2.0)}, r"train\.text_weight does nothing"),
        ({"train": TrainConfig(starting_values="official")}, r"train\.starting_values does nothing"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderRun(**changes)


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for data in (
        ScenesData(size=17),
        TextData(files=("x",)),
        MixtureData(sources=(SCENES, ScenesData(size=32)), weights=(1.0, 1.0)),
    ):
        with pytest.raises(ValueError, match="pictures of one size, a multiple of 2 pixels"):
            build_network(config_of(tmp_path, data=data))


def write_parquet(path: Path) -> None:
    """Six pictures with the columns of the emoji."""
    import datasets

    rows: dict[str, list[Any]] = {"image": [], "name": [], "skin_tone": []}
    for number, pixels in enumerate(latents.pictures(6, size=(16, 16))):
        file = io.BytesIO()
        PILImage.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["name"].append(f"thing {number}")
        rows["skin_tone"].append("")
    datasets.Dataset.from_dict(rows).to_parquet(path)


def test_the_command_trains_goes_on_and_releases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monoformer.train.reconstruction.FIGURES", 4)
    (tmp_path / "smileys").mkdir()
    file = tmp_path / "smileys" / "train.parquet"
    write_parquet(file)
    command = [
        "train", "autoencoder", f"--folder={tmp_path / 'run'}", f"--data.sources.1.files={file}",
        "--data.sources.1.holdout=1", "--data.sources.1.holdout-pairs=0", "--data.sources.1.size=16",
        "--data.sources.0.size=16", "--crop=8", "--widths", "8", "8", "--groups=4", "--train.rows=2",
        "--train.warmup=1",
        "--train.sample-every=2", "--train.log-every=1", "--train.device=cpu",
    ]  # fmt: skip
    main([*command, "--train.steps=2"])
    main([*command, "--train.steps=4"])
    said = capsys.readouterr().out
    assert "done:" in said
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
    ]
    assert "| smileys | " in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    build_autoencoder(AutoencoderConfig(path=str(tmp_path / "run" / "model")))
