"""Checkpoints: written while the run goes on; whole or absent, whether it is killed or the disk is full."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.config.run import RunConfig
from monoformer.train.checkpoint import Checkpoints, checkpoints, load_checkpoint, read_progress, share_of
from monoformer.train.guards import Spikes, locked
from monoformer.train.metrics import read_metrics
from monoformer.train.parallel import Ranks
from monoformer.train.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def weights(trainer: Trainer) -> dict[str, Tensor]:
    named = {f"model {name}": p.detach().clone() for name, p in trainer.model.named_parameters()}
    return named | {f"average {name}": value.clone() for name, value in trainer.state.ema.weights.items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def configuration(folder: Path, **train: Any) -> RunConfig:
    return tiny.run_config(folder, train={"checkpoint_every": 2, "sample_every": 1, **train})


@pytest.fixture(scope="module")
def straight_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("straight")


@pytest.fixture(scope="module")
def straight(straight_folder: Path) -> dict[str, Tensor]:
    """What a run of six steps ends with that nothing happens to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spikes, "SPAN", 2)  # six steps are few
        trainer = tiny.trainer(configuration(straight_folder, spike_factor=0.5))
        assert trainer.run()
    return weights(trainer)


def test_a_checkpoint_holds_what_there_was_when_it_was_begun(tmp_path: Path) -> None:
    trainer = tiny.trainer(configuration(tmp_path / "run"))
    before = weights(trainer)
    written = Checkpoints(tmp_path / "checkpoints", keep=1)
    written.save(trainer.state, step=1, progress={})
    with torch.no_grad():
        for value in [*trainer.model.parameters(), *trainer.state.ema.weights.values()]:
            value.add_(1)
    written.wait()
    (path,) = checkpoints(tmp_path / "checkpoints")
    load_checkpoint(path, trainer.state, read_progress(path))
    assert_same(weights(trainer), before)
    trainer.parts.loader.close()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_that_hold_the_same_copy_each_their_share_of_it(world: int, tmp_path: Path) -> None:
    trainer = tiny.trainer(configuration(tmp_path / "run"))
    averages: dict[str, Any] = {"ema": dict(trainer.state.ema.weights), "steps": 3, "groups": [{"lr": 0.1}]}
    shares = [share_of(averages, Ranks(rank=rank, world=world)) for rank in range(world)]
    names = [name for share in shares for name in share["ema"]]
    assert sorted(names) == sorted(averages["ema"])
    assert all(share["steps"] == 3 and share["groups"] == averages["groups"] for share in shares)
    sizes = [sum(value.nbytes for value in share["ema"].values()) for share in shares]
    assert max(sizes) - min(sizes) <= max(value.nbytes for value in averages["ema"].values())
    trainer.parts.loader.close()


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(tmp_path: Path, straight: dict[str, Tensor]) -> None:
    resource = pytest.importorskip("resource")
    config = configuration(tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int, averaged: dict[str, Tensor]) -> None:
        if step == 3:  # no file can grow beyond this: curves and metrics are smaller, checkpoints are not
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))

    try:
        with pytest.raises(ValueError, match=r"step 4 could not be written .*step-00000002 is whole. Make room"):
            tiny.trainer(config, sample=fill).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"step": 5, "te', encoding="utf-8")  # as a full disk cuts it
    again = tiny.trainer(config)
    assert again.run()
    assert_same(weights(again), straight)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]


def kill_while_writing(folder: Path) -> None:
    """In a process of its own: gone by kill -9 as soon as the checkpoint of step 4 is begun."""

    def kill(step: int, averaged: dict[str, Tensor]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)  # as the laws run: with two, some libraries' products differ in their last bits
    tiny.trainer(configuration(folder), sample=kill).run()


@pytest.mark.slow
def test_a_run_killed_while_a_checkpoint_is_written_goes_on(tmp_path: Path, straight: dict[str, Tensor]) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranks", "tests.tiny"])
    process = context.Process(target=kill_while_writing, args=(tmp_path / "run",))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000002"
    again = tiny.trainer(configuration(tmp_path / "run"))
    assert again.run()
    assert_same(weights(again), straight)
    assert all(path.suffix == "" for path in (tmp_path / "run" / "checkpoints").iterdir()), "nothing is left over"


def test_sigterm_saves_and_is_told(tmp_path: Path) -> None:
    def terminate(step: int, averaged: dict[str, Tensor]) -> None:
        if step == 2:  # once: a second one ends the process
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = tiny.trainer(configuration(tmp_path / "run"), sample=terminate)
    assert not stopped.run()
    assert stopped.loop.ended_by == signal.SIGTERM
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{stopped.loop.step:08d}"


def test_a_run_in_a_folder_where_another_is_at_work_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    config = configuration(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(ValueError, match=r"another run is at work in .*run"):
        tiny.trainer(config).run()
    assert not checkpoints(tmp_path / "run" / "checkpoints")


def test_spikes_are_losses_far_above_their_mean() -> None:
    random, spikes = Random(0), Spikes(3.0)
    quiet = [spikes.find({"text_loss": random.uniform(0.5, 1.5), "image_loss": 2.0}) for _ in range(300)]
    assert quiet == [[]] * 300
    again = Spikes(3.0)
    again.load_state_dict(json.loads(json.dumps(spikes.state_dict())))
    assert again.find({"text_loss": 4.0, "image_loss": 2.0}) == ["text_loss"]
    assert again.find({"text_loss": 1.0, "image_loss": 7.0}) == ["image_loss"]
    assert again.means["text_loss"] < 1.2, "one spike hardly moves the mean"
    assert Spikes(0.0).find({"text_loss": 1e9}) == []


def test_spikes_are_counted_in_the_metrics(straight_folder: Path, straight: dict[str, Tensor]) -> None:
    found = [line["spikes"] for line in read_metrics(straight_folder / "metrics.jsonl")]
    assert found[:2] == [0, 0]
    assert sum(found) > 0
