"""Latents in training and in model folders: samples keyed by picture, a frozen autoencoder that goes with the model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.autoencoder import LatentAutoencoder, build_autoencoder
from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.data import ScenesData, SequenceConfig
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.pipeline import Pipeline
from monoformer.pretrained import load_pretrained, save_pretrained
from monoformer.train.build import build_run
from monoformer.train.loss import latents_of
from monoformer.train.trainer import Trainer
from tests import latents, tiny

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHAPE: dict[str, Any] = {"patch": 1, "down": 4, "channels": 4}
"""The tiny model's sizes in latents: patches of 4 pixels, as before."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return latents.save("kl4", tmp_path_factory.mktemp("autoencoder") / "kl4")


def config_of(folder: Path, path: str, **train: Any) -> RunConfig:
    return tiny.run_config(
        folder,
        train=train,
        model=tiny.model_config(**SHAPE),
        autoencoder=AutoencoderConfig(path=path, posterior="sample"),
    )


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_samples_are_keyed_by_picture_and_nothing_else(path: str) -> None:
    autoencoder = LatentAutoencoder(latents.network("kl4"), sample=True)
    layouts = tiny.layouts("adaln", 0, 8)
    found: list[dict[tuple[int, int], Tensor]] = []
    for batch in (tiny.in_rows(layouts), tiny.in_rows(layouts[::-1], rows=3)):
        samples: dict[tuple[int, int], Tensor] = {}
        for slots in batch.images:
            targets = slots.noised.nonzero()[:, 0]
            mean, deviation = autoencoder.moments(slots.pixels)
            assert deviation is not None
            x_0 = latents_of(slots, targets, (mean, deviation), 3)
            again = latents_of(slots, targets, (mean, None), 3)
            assert torch.equal(again, mean[slots.picture[targets]])
            for place, x, m in zip(targets, x_0, again, strict=True):
                picture = slots.picture[place]
                key = (int(slots.document[picture]), int(slots.number[picture]))
                samples[key] = (x - m) / deviation[picture]
        found.append(samples)
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 3
    for key, noise in found[0].items():
        torch.testing.assert_close(noise, found[1][key], rtol=1e-3, atol=1e-3)
    values = torch.cat([noise.flatten() for noise in found[0].values()])
    assert abs(float(values.mean())) < 0.3
    assert 0.7 < float(values.std()) < 1.3
    assert len({float(noise.flatten()[0]) for noise in found[0].values()}) == len(found[0])


def test_accumulated_passes_equal_one_and_leave_the_autoencoder_alone(path: str, tmp_path: Path) -> None:
    trained = []
    for rows in (2, 4):
        trainer = tiny.trainer(config_of(tmp_path / str(rows), path, steps=2, pass_rows=rows))
        assert isinstance(trainer.parts.autoencoder, LatentAutoencoder)
        before = {name: value.clone() for name, value in trainer.parts.autoencoder.network.state_dict().items()}
        assert trainer.run()
        after = trainer.parts.autoencoder.network.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert not trainer.parts.autoencoder.network.training
        trained.append(weights_of(trainer))
    names = dict(tiny.model(**SHAPE).named_parameters())
    assert trained[0].keys() == {*names}, "the autoencoder is never part of the model's state"
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_resumed_run_draws_the_same_samples(path: str, tmp_path: Path) -> None:
    straight = tiny.trainer(config_of(tmp_path / "straight", path, steps=4))
    assert straight.run()
    assert tiny.trainer(config_of(tmp_path / "broken", path, steps=2)).run()
    resumed = tiny.trainer(config_of(tmp_path / "broken", path, steps=4))
    assert resumed.run()
    expected = weights_of(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(resumed).items())


def test_a_run_from_before_a_field_was_added_goes_on(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path, train={"steps": 1})
    assert tiny.trainer(config).run()
    state = tmp_path / "checkpoints" / "step-00000001" / "state.json"
    saved = json.loads(state.read_text())
    del saved["config"]["autoencoder"], saved["config"]["model"]["down"]
    state.write_text(json.dumps(saved))
    assert tiny.trainer(replace(config, train=replace(config.train, steps=2))).run()


def test_the_mean_and_a_sample_train_differently(path: str, tmp_path: Path) -> None:
    sample = config_of(tmp_path / "sample", path, steps=1)
    mean = replace(sample, folder=str(tmp_path / "mean"), autoencoder=AutoencoderConfig(path=path))
    trained = []
    for trainer in (tiny.trainer(sample), tiny.trainer(mean)):
        trainer.train_step([next(trainer.parts.loader)])
        trainer.parts.loader.close()
        trained.append(trainer.model.patches.linear.weight)
    assert not torch.equal(*trained)


def test_a_model_folder_stands_alone(path: str, tmp_path: Path) -> None:
    source = shutil.copytree(path, tmp_path / "source")
    made = replace(tiny.pretrained(**SHAPE), autoencoder=AutoencoderConfig(path=str(source)))
    before = Pipeline(made, slots=4)
    save_pretrained(tmp_path / "model", made)
    expected = before.generate_images("red circle", size=(12, 8))[0]
    assert expected.size == (8, 12)
    shutil.rmtree(source)
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    after = Pipeline.from_pretrained(moved, device="cpu", dtype=torch.float32, slots=4)
    assert after.generate_images("red circle", size=(12, 8))[0].tobytes() == expected.tobytes()
    assert after.caption(expected) == before.caption(expected)
    after.save_pretrained(moved)
    after.save_pretrained(tmp_path / "again")
    for folder in (moved, tmp_path / "again"):
        kept = load_pretrained(folder).autoencoder
        assert kept.path == str(folder / "autoencoder")
        assert isinstance(build_autoencoder(kept), LatentAutoencoder)
    given = Pipeline.from_pretrained(moved, device="cpu", autoencoder=LatentAutoencoder(latents.network("kl4")))
    assert isinstance(given.engine.network.autoencoder, LatentAutoencoder)


def test_pixels_leave_nothing_in_a_model_folder(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", tiny.pretrained())
    assert not (tmp_path / "model" / "autoencoder").exists()
    assert load_pretrained(tmp_path / "model").autoencoder == AutoencoderConfig()


def scenes_config(folder: Path, path: str, **shape: Any) -> RunConfig:
    model = ModelConfig(
        width=32, layers=1, heads=2, kv_heads=2, mlp_width=48, context=256, image_sizes=((32, 32),), patch=2,
        **{"down": 4, "channels": 4, **shape},
    )  # fmt: skip
    rows = SequenceConfig(row=256, window=12)
    return tiny.run_config(
        folder, model=model, sequence=rows, data=ScenesData(size=32), autoencoder=AutoencoderConfig(path=path)
    )


def test_a_run_is_built_on_the_latents_it_names_and_refuses_others(path: str, tmp_path: Path) -> None:
    built = build_run(scenes_config(tmp_path / "run", path))
    assert isinstance(built.parts.autoencoder, LatentAutoencoder)
    batch = next(built.parts.loader)
    built.parts.loader.close()
    assert batch.images
    assert all(slots.grid == (4, 4) for slots in batch.images)
    with pytest.raises(ValueError, match=r"4 channels and a cell for 4 pixels.*--model\.channels 4 --model\.down 4"):
        build_run(scenes_config(tmp_path / "run", path, channels=8))
    with pytest.raises(ValueError, match=r"are a latent's, but pixels have 3 and 1; give --autoencoder\.path"):
        scenes_config(tmp_path / "run", "")
    given = latents.network("tiny")
    assert build_run(scenes_config(tmp_path / "run", "mine"), autoencoder=LatentAutoencoder(given))
    with pytest.raises(ValueError, match="'mine', neither a folder"):
        build_run(scenes_config(tmp_path / "run", "mine"))


def test_finetuning_keeps_the_latents_of_the_model(path: str, tmp_path: Path) -> None:
    config = scenes_config(tmp_path / "run", path)
    built = build_run(config)
    save_pretrained(tmp_path / "model", built.pretrained)
    plain = tiny.run_config(tmp_path / "finetuned", data=ScenesData(size=32), start=str(tmp_path / "model"))
    again = build_run(plain)
    assert again.parts.config.autoencoder.path == str(tmp_path / "model" / "autoencoder")
    assert again.parts.autoencoder.channels == 4
