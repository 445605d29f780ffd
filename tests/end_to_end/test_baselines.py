"""The baselines of diffusers train on what ours trains on, go on where they stopped, and are scored as ours is."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from monoformer.batch import Batch
from monoformer.config.data import ScenesData, TokenizerConfig
from monoformer.data.build import build_source
from monoformer.document import Document
from monoformer.presets import PRESETS
from monoformer.train.build import Built, build_run
from monoformer.train.loss import noise_of, times_of
from tests.contracts.test_evaluate import judge
from tests.end_to_end.conftest import SMALL
from tests.pages import ROOT

pytest.importorskip("diffusers")
CIFAR = ROOT.parent / "shared" / "data" / "cifar10" / "test.parquet"

Baselines = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def in_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def baselines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Baselines:
    """Run the script with these arguments; its line of JSON."""

    def call(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["baselines.py", *arguments, f"--out={tmp_path / 'out'}"])
        runpy.run_path(str(ROOT / "benchmarks" / "baselines.py"), run_name="__main__")
        found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        return found

    return call


def built(run: Path, **kinds: float) -> Built:
    """A run on scenes of these kinds of documents."""
    config = PRESETS["scenes-quick"]()
    assert isinstance(config.data, ScenesData)
    none = dict.fromkeys(("draw", "describe", "edit", "question", "story"), 0.0)
    return build_run(
        replace(
            config,
            model=replace(config.model, width=64, heads=2, kv_heads=1, mlp_width=64, layers=1),
            data=replace(config.data, **{**none, **kinds}),
            tokenizer=TokenizerConfig(path=str(run / "model")),
            sequence=replace(config.sequence, window=16, noise_draws=2, drop_text=0.5),
            train=replace(config.train, rows=4),
        )
    )


def batches(parts: Built) -> Iterator[Batch]:
    yield from islice(parts.parts.loader, 3)
    parts.parts.loader.close()


def test_a_baseline_is_asked_what_our_network_is_asked(run: Path) -> None:
    from painter import captions_of

    parts = built(run, draw=1.0)
    tokenizer, sequencer = parts.pretrained.tokenizer, parts.pretrained.sequencer()
    source = build_source(parts.parts.config.data, split="train", seed=parts.parts.config.seed)
    asked = [Document(d.segments[:1]) for d in islice(source, 300) if isinstance(d, Document)]
    prompts = {tuple(sequencer.prompt(document, opening="image").ids) for document in asked}
    empty = tuple(sequencer.prompt(Document(()), opening="image").ids)
    seen = []
    for batch in batches(parts):
        (slots,) = batch.images
        captions = captions_of(batch, slots, tokenizer)
        assert list(captions) == slots.noised.nonzero()[:, 0].tolist(), "every noised picture has one"
        seen += [tuple(caption.tolist()) for caption in captions.values()]
    assert empty in seen, "some were dropped for guidance"
    assert {*seen} - {empty}
    assert {*seen} <= {*prompts, empty}


def test_pictures_behind_pictures_are_left_out(run: Path) -> None:
    from painter import captions_of

    parts = built(run, draw=1.0, edit=4.0)
    found = [
        (slots.targets, len(captions_of(batch, slots, parts.pretrained.tokenizer)))
        for batch in batches(parts)
        for slots in batch.images
    ]
    targets, captions = (sum(own) for own in zip(*found, strict=True))
    assert 0 < captions < targets


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_baseline_learns_from_our_noise_at_our_times(run: Path, kind: Any) -> None:
    from painter import build_painter, painter_losses, size_of

    parts = built(run, draw=1.0)
    ours, config = parts.parts.model, parts.parts.config
    wanted = 400_000
    painter = build_painter(kind, ours.config, vocabulary=512, parameters=wanted, seed=0)
    assert 0.9 * wanted < size_of(painter) < 1.1 * wanted
    batch = next(batches(parts))
    settings = {"objective": parts.parts.objective, "autoencoder": parts.parts.autoencoder, "seed": config.seed}
    losses = painter_losses(painter, batch, parts.pretrained.tokenizer, **settings)
    (slots,) = batch.images
    where = slots.noised.nonzero()[:, 0]
    x_0 = parts.parts.autoencoder.encode(slots.pixels)[slots.picture[where]]
    t = times_of(slots, where, parts.parts.objective, config.seed, positions=32 * 32)
    noise = noise_of(slots, where, x_0, config.seed)
    says_nothing = parts.parts.objective.error(torch.zeros_like(x_0), x_0, t, noise)
    torch.testing.assert_close(losses, says_nothing, msg="as it begins, it says 0 of what ours is asked")
    losses.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in painter.parameters())


def small(run: Path) -> list[str]:
    return ["--preset=scenes-quick", "--count=2", *SMALL, "--model.width=96", f"--tokenizer.path={run / 'model'}"]


def test_a_baseline_is_trained_and_scored_and_goes_on(run: Path, baselines: Baselines, tmp_path: Path) -> None:
    """As the two cases of a resumed run: nothing left to do, and killed behind a checkpoint."""
    whole = baselines("--network=dit", "--rate=0.001", *small(run))
    assert whole == baselines("--network=dit", "--rate=0.001", *small(run)), "the second time found it"
    assert whole["scores"].keys() == {"draw_exact", "draw_colour", "draw_colour_and_shape"}
    shutil.rmtree(Path(whole["folder"]) / "checkpoints" / "step-00000004")
    (tmp_path / "out" / "results.jsonl").unlink()
    again = baselines("--network=dit", "--rate=0.001", *small(run))
    assert again["steps"] == whole["steps"] == 4
    for name in ("digest", "image_loss", "scores", "documents", "tokens", "parameters"):
        assert again[name] == whole[name], name


@pytest.mark.slow
def test_the_three_networks_read_the_same_and_stand_in_one_table(
    run: Path, baselines: Baselines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [baselines(f"--network={name}", "--steps=2", *small(run)) for name in ("monoformer", "unet", "dit")]
    ours, *others = found
    for record in others:
        assert record["scores"].keys() == ours["scores"].keys()
        assert 0.9 < record["parameters"] / ours["parameters"] < 1.1
        assert (record["documents"], record["tokens"]) == (ours["documents"], ours["tokens"]), "the same batches"
    baselines("--network=unet", "--steps=2", "--seed=1", *small(run))
    monkeypatch.setattr(sys, "argv", ["baselines.py", "--table", f"--out={tmp_path / 'out'}"])
    runpy.run_path(str(ROOT / "benchmarks" / "baselines.py"), run_name="__main__")
    table = capsys.readouterr().out
    for row in ("scenes-quick-monoformer | 1 of 1", "scenes-quick-unet | 2 of 2", "scenes-quick-dit | 1 of 1"):
        assert row in table
    assert (tmp_path / "out" / "study.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_file(), reason=f"the pictures are not here: no file {CIFAR}")
@pytest.mark.parametrize("network", ["unet", "dit", "monoformer"])
def test_the_same_on_class_names(network: str, baselines: Baselines, tmp_path: Path) -> None:
    import datasets

    pictures = datasets.load_dataset("parquet", data_files=str(CIFAR), split="train", cache_dir=str(tmp_path))
    for name, chosen in (("train", range(64)), ("test", range(64, 128))):
        pictures.select(chosen).to_parquet(tmp_path / f"{name}.parquet")
    data = [f"--data.files={tmp_path / 'train.parquet'}", f"--real={tmp_path / 'test.parquet'}"]
    found = baselines(
        f"--network={network}", "--preset=cifar10", "--steps=2", "--count=10", f"--judge={judge(tmp_path)}", *data,
        *SMALL, "--model.width=96",
    )  # fmt: skip
    assert found["scores"].keys() == {"class_right", "frechet_distance"}
    assert 0 <= found["scores"]["class_right"] <= 1
