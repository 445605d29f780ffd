"""Watching a run: losses by source and level, what a step must compute, TensorBoard and Weights & Biases, curves."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from monoformer.autoencoder import Pixels
from monoformer.batch import IGNORED, Batch
from monoformer.config.diffusion import FlowConfig
from monoformer.config.run import RunConfig
from monoformer.data.source import Indexed, Mixture
from monoformer.device import GPUS, find_gpu, forget_host_peak, host_peak
from monoformer.diffusion.objectives import build_objective
from monoformer.model.attention import dense_mask
from monoformer.model.monoformer import Place
from monoformer.train.breakdown import LEVELS, Breakdown
from monoformer.train.curves import CURVES, panels_of
from monoformer.train.loss import pass_losses, times_of
from monoformer.train.metrics import CLOCK, Metrics, read_metrics
from monoformer.train.operations import Operations, seen_in, visible_counts
from monoformer.train.tracking import Tracking
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
CPU = torch.device("cpu")


def losses(batch: Batch, breakdown: Breakdown) -> tuple[float, float]:
    text, image = pass_losses(
        tiny.model(), batch, dense_mask(batch), objective=build_objective(FlowConfig()), autoencoder=Pixels(), seed=5,
        breakdown=breakdown,
    )  # fmt: skip
    return float(text), float(image)


def time_of(batch: Batch) -> float:
    """The time of the one target that a batch holds."""
    (slots,) = batch.images
    return float(times_of(slots, slots.noised.nonzero()[:, 0], build_objective(FlowConfig()), 5, positions=1))


@torch.no_grad()
def test_the_parts_are_the_losses_of_their_documents() -> None:
    picture = tiny.image(Random(0), target=True, role="assistant", size=(8, 8))
    own = tiny.sequencer(context="noised")
    documents = [tiny.Document((tiny.Text(tiny.words(Random(n)), "user"), picture)) for n in range(12)]
    layouts = [own.document(document, n, seed=5) for n, document in enumerate(documents)]
    for number, layout in enumerate(layouts):
        layout.source = number % 2
        layout.labels[0] = layout.ids[1]
    expected: dict[str, dict[str, list[float]]] = {"text": {}, "image": {}, "level": {}}
    for layout in layouts:
        batch = tiny.in_rows([layout], rows=1)
        text, image = losses(batch, Breakdown(("a", "b"), device=CPU))
        level = int(time_of(batch) * LEVELS) / LEVELS
        expected["text"].setdefault("ab"[layout.source], []).append(text / batch.labelled)
        expected["image"].setdefault("ab"[layout.source], []).append(image)
        expected["level"].setdefault(f"{level:g}-{level + 1 / LEVELS:g}", []).append(image)
    breakdown = Breakdown(("a", "b"), device=CPU)
    losses(tiny.in_rows(layouts), breakdown)
    breakdown.drop()
    assert breakdown.read() == {}, "a step that is left out leaves nothing"
    losses(tiny.in_rows(layouts), breakdown)
    breakdown.keep()
    again = Breakdown(("a", "b"), device=CPU)
    again.load_state_dict(breakdown.state_dict())
    found = breakdown.read()
    assert again.read() == found, "a checkpoint keeps the sums"
    assert breakdown.read() == {}, "and reading starts anew"
    assert len(expected["level"]) > 2
    names = {"text": "text_loss_by_source", "image": "image_loss_by_source", "level": "image_loss_by_level"}
    for kind, name in names.items():
        means = {part: sum(values) / len(values) for part, values in expected[kind].items()}
        assert found[name] == pytest.approx(means, rel=1e-4)


def test_adding_and_keeping_never_waits_for_the_device() -> None:
    """On the meta device whatever would need a value raises."""
    meta = torch.device("meta")
    breakdown = Breakdown(("a", "b"), device=meta)
    source, values = torch.zeros(3, dtype=torch.long, device=meta), torch.zeros(3, device=meta)
    breakdown.add_text(source, values)
    breakdown.add_images(source, values, values)
    breakdown.keep()
    breakdown.drop()
    with pytest.raises((NotImplementedError, RuntimeError)):
        breakdown.read()


@pytest.mark.parametrize("mode", [mode for mode in tiny.MODES if mode != "vision"])
def test_the_operations_are_those_that_torch_counts(mode: str) -> None:
    network = tiny.model(mode)
    layouts = tiny.layouts(mode, 3, 8, sequence={"context": "noised"})
    batch = tiny.in_rows(layouts, rows=2, padding=0)
    seen = seen_in(batch)
    images, times, places = tiny.latents_of(batch)
    skips: list[Any] = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = network(batch.ids, batch.positions, dense_mask(batch), images=images, times=times, places=places,
                         skips=skips)  # fmt: skip
        network.text(hidden[batch.labels != IGNORED])
        for slots, time, place, kept in zip(batch.images, times, places, skips, strict=True):
            where = slots.noised.nonzero()[:, 0]
            chosen = Place(place.row[where], place.start[where], place.grid)
            network.image(hidden, time[where], chosen, tuple(own[where] for own in kept))
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    padding = batch.ids.numel() - seen.tokens
    must = Operations(network).count(replace(seen, tokens=seen.tokens + padding, pairs=0)) / 3
    # the time embedding runs once more in the image head, and its time tokens pass the image experts
    assert counted == pytest.approx(must, rel=0.06)


@pytest.mark.parametrize("context", tiny.CONTEXTS)
def test_the_pairs_are_those_of_the_mask(context: str) -> None:
    batch = tiny.in_rows(tiny.layouts("token", 4, 12, sequence={"context": context}), rows=3)
    expected = dense_mask(batch)[:, 0].sum(2)
    expected[batch.document < 0] = 0
    assert torch.equal(visible_counts(batch), expected)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100pcie"), ("NVIDIA A100-SXM4-40GB", "a10040gb"),
        ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("AMD Instinct MI300X", "mi300x"), ("Unheard-of 9000", ""),
    ],
)  # fmt: skip
def test_a_gpu_is_found_by_its_own_name(name: str, own: str) -> None:
    assert find_gpu(name) == GPUS.get(own)


def stream() -> Mixture:
    """Two sources: documents with and without images."""
    own = tiny.source()
    text = Indexed(lambda n: tiny.document(Random(n), images=False), name="text")
    return Mixture([Indexed(own.document, name="mixed"), text], weights=[1, 1], seed=0)


def watched(config: RunConfig) -> Any:
    """A trainer whose sample pictures are one gray square."""

    def sample(step: int, weights: dict[str, Tensor]) -> Path:
        path = config.path / f"sample-{step}.png"
        PILImage.new("RGB", (8, 8), "gray").save(path)
        return path

    trainer = tiny.trainer(config, sample=sample, stream=stream())
    trainer.breakdown = trainer.loop.metrics.breakdown = Breakdown(stream().names, device=CPU)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of four steps, stopped once half way, told to TensorBoard."""
    train = {"steps": 2, "sample_every": 2, "log_every": 2, "tensorboard": True}
    config = tiny.run_config(tmp_path_factory.mktemp("watched"), train=train)
    assert watched(config).run()
    config = replace(config, train=replace(config.train, steps=4))
    assert watched(config).run()
    return config


def test_a_line_says_what_is_to_be_watched(run: RunConfig) -> None:
    lines = read_metrics(run.path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line.keys() >= {"text_loss", "image_loss", "gradient_norm", "padding", *CLOCK} - {"device_peak_gib"}
        assert line["text_loss_by_source"].keys() == {"mixed", "text"}
        assert line["image_loss_by_source"].keys() == {"mixed"}
        assert 0 < line["mfu"] < 1
        assert 0.05 < line["host_peak_gib"] < 100
        parts = line["image_loss_by_level"].values()
        assert min(parts) <= line["image_loss_by_source"]["mixed"] <= max(parts)


def test_rates_are_those_of_the_steps_alone(tmp_path: Path) -> None:
    """Samples between two lines, and a run that was stopped between them, change nothing."""
    before, after = Metrics(tmp_path / "metrics.jsonl"), Metrics(tmp_path / "metrics.jsonl")
    before.add({"seconds": 2.0}, totals={"tokens_per_second": 300})
    after.load_state_dict(before.state_dict())
    after.add({"seconds": 1.0}, totals={"tokens_per_second": 300})
    assert after.write(2)["tokens_per_second"] == 200
    after.add({"seconds": 4.0}, totals={"tokens_per_second": 300})
    assert [line["tokens_per_second"] for line in read_metrics(before.path)] == [200]
    assert after.write(3) == {"step": 3, "seconds": 4.0, "tokens_per_second": 75}


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not let peaks be forgotten"
)
def test_a_peak_of_before_can_be_forgotten() -> None:
    held = bytearray(200 * 2**20)
    before = host_peak()
    del held
    forget_host_peak()
    assert host_peak() < before - 100 * 2**20


def test_tensorboard_has_the_lines_and_the_pictures(run: RunConfig) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    lines = read_metrics(run.path / "metrics.jsonl")
    for name in ("text_loss", "mfu", "tokens_per_second", "text_loss_by_source/text"):
        told = [(event.step, event.value) for event in board.Scalars(name)]
        group, _, part = name.partition("/")
        written = [(line["step"], line[group][part] if part else line[group]) for line in lines]
        assert told == [(step, pytest.approx(value, rel=1e-5)) for step, value in written]
    assert [event.step for event in board.Images("samples")] == [2, 4]


def test_without_tensorboard_a_run_says_so_once_and_goes_on(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = replace(run, folder=str(tmp_path), train=replace(run.train, steps=2, log_every=1))
    assert watched(config).run()
    assert capsys.readouterr().out.count("monoformer[tracking]") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert not (tmp_path / "tensorboard").exists()


def test_a_project_of_wandb_without_wandb_is_refused(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = replace(run, folder=str(tmp_path), train=replace(run.train, wandb="trial", tensorboard=False))
    with pytest.raises(ValueError, match=r"'trial' needs wandb.*monoformer\[tracking\]"):
        Tracking(config, step=0)


@pytest.mark.slow  # its service takes some ten seconds to start
@pytest.mark.filterwarnings("default")
def test_wandb_offline_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny.run_config(tmp_path, train={"steps": 2, "sample_every": 2, "wandb": "trial"})
    assert watched(config).run()
    assert watched(replace(config, train=replace(config.train, steps=3))).run()
    name = (tmp_path / "wandb-id.txt").read_text(encoding="utf-8")
    kept = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in kept] == [f"run-{name}.wandb"] * 2
    assert b"image_loss_by_level/" in kept[0].read_bytes()
    assert list((tmp_path / "wandb").rglob("media/images/samples*.png"))


def test_curves_show_what_is_parted(run: RunConfig) -> None:
    lines = read_metrics(run.path / "metrics.jsonl")
    assert [name for name, _ in panels_of(lines, CURVES)][3:] == [
        *("image_loss_by_level", "image_loss_by_source", "text_loss_by_source")
    ]
    assert panels_of([{"step": 1, "text_loss": 1.0}], CURVES) == list(CURVES)
    with PILImage.open(run.path / "curves.png") as picture:
        assert picture.width > picture.height > 0.5 * picture.width, "two rows of three"
