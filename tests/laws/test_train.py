"""Training: a run stopped or killed at any moment goes on bit for bit; what would make it another run is refused."""

import json
import logging
import math
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.config.data import FolderData, MixtureData, ScenesData, SequenceConfig, TextData
from monoformer.config.run import RunConfig, to_json
from monoformer.config.train import AdamWConfig, MuonConfig, OptimizerConfig
from monoformer.data.skipped import BadDocument, Tally
from monoformer.model.monoformer import MonoFormer
from monoformer.train.build import build_run
from monoformer.train.checkpoint import checkpoints
from monoformer.train.guards import check_same_run
from monoformer.train.metrics import CLOCK, read_metrics
from monoformer.train.optim import rate_factor
from monoformer.train.start import new_start
from monoformer.train.trainer import Trainer
from tests import tiny

# One test, `test_saving_and_resuming_warn_of_nothing`, is strict about it.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

OPTIMIZERS = [AdamWConfig(rate=1e-2, weight_decay=0.1), MuonConfig(rate=0.02, adamw_rate=1e-2, weight_decay=0.1)]


class KilledError(Exception):
    """Stands for kill -9: nothing is saved on the way out."""


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield name, value
        return
    for key, inner in items:
        yield from tensors(inner, f"{name}.{key}")


def state_of(trainer: Trainer) -> dict[str, Any]:
    state = trainer.state
    found: dict[str, Any] = {
        "model": state.model.state_dict(),
        "ema": state.ema.weights,
        "updates": state.ema.updates,
        "step": trainer.loop.step,
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "loader": trainer.parts.loader.state_dict(),
    }
    return dict(tensors(found))


def assert_equal_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines without what a clock says."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(folder / "metrics.jsonl")]


def finish(config: RunConfig) -> Trainer:
    trainer = tiny.trainer(config)
    assert trainer.run()
    return trainer


def run_and_kill(config: RunConfig, step: int) -> None:
    """Killed after `step` steps, whatever was saved by then."""

    def kill(now: int, weights: dict[str, Tensor]) -> None:
        if now == step:
            raise KilledError

    trainer = tiny.trainer(replace(config, train=replace(config.train, sample_every=1)), sample=kill)
    with pytest.raises(KilledError):
        trainer.run()
    trainer.parts.loader.close()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("mode", ["adaln", "add", "experts", "vision"])
def test_a_killed_run_resumes_bit_for_bit(optimizer: OptimizerConfig, mode: str, tmp_path: Path) -> None:
    settings = {"optimizer": optimizer, "checkpoint_every": 3, "freeze": "text" if mode == "experts" else "none"}
    straight = tiny.run_config(tmp_path / "straight", mode=mode, start="a text model", train=settings)
    broken = replace(straight, folder=str(tmp_path / "broken"))
    expected = state_of(finish(straight))
    run_and_kill(broken, 5)
    assert [path.name for path in checkpoints(tmp_path / "broken" / "checkpoints")] == ["step-00000003"]
    assert_equal_bits(state_of(finish(broken)), expected)
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")
    assert len(metrics_of(tmp_path / "straight")) == 6


def test_a_run_killed_between_two_lines_of_metrics_resumes_with_the_same_lines(tmp_path: Path) -> None:
    straight = tiny.run_config(tmp_path / "straight", train={"log_every": 2, "checkpoint_every": 3})
    broken = replace(straight, folder=str(tmp_path / "broken"))
    finish(straight)
    run_and_kill(broken, 5)
    finish(broken)
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


@contextmanager
def interrupting(config: RunConfig, step: int) -> Iterator[Trainer]:
    """A trainer that gets Ctrl-C while its sample pictures of `step` are drawn."""

    def interrupt(now: int, weights: dict[str, Tensor]) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    yield tiny.trainer(replace(config, train=replace(config.train, sample_every=1)), sample=interrupt)
    assert signal.getsignal(signal.SIGINT) == before, "the handlers are put back"


def test_an_interrupted_run_saves_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    straight = tiny.run_config(tmp_path / "straight")
    broken = replace(straight, folder=str(tmp_path / "broken"))
    expected = state_of(finish(straight))
    with interrupting(broken, 2) as trainer:
        assert not trainer.run()
    stopped = trainer.loop.step
    assert stopped in (2, 3), "after the step in progress"
    (saved,) = checkpoints(tmp_path / "broken" / "checkpoints")
    assert saved.name == f"step-{stopped:08d}", "what was trained is saved"
    assert_equal_bits(state_of(finish(broken)), expected)
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


def test_a_stop_in_the_middle_of_a_step_saves_that_step(tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.run_config(tmp_path / "run"))

    class Stopping:
        """A stream that asks for the stop while the second step's rows are read."""

        def __init__(self) -> None:
            self.loader, self.read = trainer.parts.loader, 0

        def __next__(self) -> Any:
            self.read += 1
            if self.read == 3:
                trainer.loop.stop()  # as the signal handler does
            return next(self.loader)

        def state_dict(self) -> dict[str, Any]:
            return self.loader.state_dict()

        @property
        def skipped(self) -> Tally:
            return self.loader.skipped

        @property
        def found(self) -> dict[int, BadDocument]:
            return self.loader.found

        def close(self) -> None:
            self.loader.close()

    trainer.parts = replace(trainer.parts, loader=Stopping())  # type: ignore[arg-type]
    assert not trainer.run()
    assert trainer.loop.step == 2
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002"]
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_finished_run_does_nothing_more_and_can_be_lengthened(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 2})
    first = state_of(finish(config))
    assert_equal_bits(state_of(finish(config)), {**first, **_loader(finish(config))})
    longer = finish(replace(config, train=replace(config.train, steps=6)))
    straight = finish(tiny.run_config(tmp_path / "straight"))
    assert_equal_bits(state_of(longer), state_of(straight))


def _loader(trainer: Trainer) -> dict[str, Any]:
    return {name: value for name, value in state_of(trainer).items() if name.startswith(".loader")}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: replace(c, seed=1), "seed"),
        (lambda c: replace(c, train=replace(c.train, rows=2)), "train.rows"),
        (lambda c: replace(c, train=replace(c.train, optimizer=AdamWConfig(rate=2e-2))), "train.optimizer.rate"),
        (lambda c: replace(c, sequence=SequenceConfig(row=96, window=13)), "sequence.window"),
        (lambda c: replace(c, diffusion=replace(c.diffusion, prediction="velocity")), "diffusion.prediction"),
    ],
)
def test_another_configuration_is_refused_by_the_fields_name(change: Any, name: str, tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 1})
    finish(config)
    before = metrics_of(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"holds another run: {name} was"):
        tiny.trainer(change(config)).run()
    assert metrics_of(tmp_path / "run") == before


def test_data_may_move_but_not_become_other_data(tmp_path: Path) -> None:
    def at(*places: str) -> dict[str, Any]:
        books, pictures = TextData(files=(f"{places[0]}/books",)), FolderData(root=places[1], size=8)
        data = MixtureData(sources=(books, pictures), weights=(0.5, 0.5))
        config: dict[str, Any] = to_json(tiny.run_config(tmp_path, data=data))
        return config

    before = at("/a", "/a/emoji")
    check_same_run(before, at("/b/c", "/d/emoji"), tmp_path)
    latent = {**before, "autoencoder": {**before["autoencoder"], "path": "/old/sd-vae"}}
    check_same_run(latent, {**latent, "autoencoder": {**latent["autoencoder"], "path": "/new/sd-vae"}}, tmp_path)
    with pytest.raises(ValueError, match=r"data\.sources\.1\.root was '/a/emoji' and is now '/a/flowers'"):
        check_same_run(before, at("/b/c", "/a/flowers"), tmp_path)


@pytest.mark.parametrize(
    "what",
    ["state.json", "state.json gone", "weights", "weights gone", "weights changed", ".metadata", ".metadata gone"],
)
def test_a_damaged_checkpoint_is_a_value_error_that_names_it(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 1})
    finish(config)
    (checkpoint,) = checkpoints(tmp_path / "run" / "checkpoints")
    name = what.split(maxsplit=1)[0]
    files = sorted(checkpoint.glob("*.distcp")) if name == "weights" else [checkpoint / name]
    for file in files:
        if what.endswith("gone"):
            file.unlink()
        elif what.endswith("changed"):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"step-00000001.* is damaged .*delete that folder and the run begins anew"):
        tiny.trainer(replace(config, train=replace(config.train, steps=2))).run()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == [], "nothing but that one line is said"


def test_only_the_newest_checkpoints_are_kept_and_incomplete_ones_are_ignored(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"checkpoint_every": 1, "keep": 2, "steps": 3})
    finish(config)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints(folder)] == ["step-00000002", "step-00000003"]
    (folder / "step-00000009.incomplete").mkdir()
    (folder / "step-00000009.incomplete" / "state.json").write_text("{", encoding="utf-8")
    assert tiny.trainer(config).run()
    expected = finish(tiny.run_config(tmp_path / "straight", train={"steps": 4}))
    assert_equal_bits(state_of(finish(replace(config, train=replace(config.train, steps=4)))), state_of(expected))


def test_saving_and_resuming_warn_of_nothing(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finish(config)
        finish(replace(config, train=replace(config.train, steps=2)))


def test_a_run_saved_before_a_field_existed_goes_on(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 1})
    finish(config)
    (path,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    state = json.loads(path.read_text(encoding="utf-8"))
    for name in ("key_width", "rope_scaling", "attention_bias"):
        del state["config"]["model"][name]
    path.write_text(json.dumps(state), encoding="utf-8")
    assert finish(replace(config, train=replace(config.train, steps=2))).loop.step == 2


def test_the_saved_configuration_is_the_run(tmp_path: Path) -> None:
    from monoformer.config.run import load_config

    config = tiny.run_config(tmp_path / "run", train={"steps": 1})
    finish(config)
    assert load_config(tmp_path / "run" / "config.json") == config
    state = json.loads((checkpoints(tmp_path / "run" / "checkpoints")[0] / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 1


def test_training_lowers_the_loss_and_moves_every_weight(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 20})
    trainer = tiny.trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    assert trainer.run()
    assert [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])] == []
    lines = metrics_of(tmp_path / "run")
    assert sum(line["text_loss"] for line in lines[-5:]) < 0.9 * sum(line["text_loss"] for line in lines[:5])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 1, 0.1 + 0.9 * 1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.5, 0.1 + 0.9 * 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, *(0.1 + 0.45 * (1 + math.cos(math.pi * n / 6)) for n in range(6))]),
    ],
)
def test_the_rate_warms_up_and_decays(schedule: Any, expected: list[float], tmp_path: Path) -> None:
    train = {"steps": 10, "warmup": 4, "schedule": schedule, "decay": 0.4, "optimizer": MuonConfig()}
    train |= {} if schedule == "constant" else {"final_rate": 0.1}
    config = tiny.run_config(tmp_path / "run", train=train)
    assert [rate_factor(step, config.train) for step in range(10)] == pytest.approx(expected)
    trainer = tiny.trainer(config)
    for factor in expected[:2]:
        trainer.train_step([next(trainer.parts.loader)])
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.state.optimizers]
        assert rates[0] == pytest.approx([0.02 * factor])
        assert rates[1] == pytest.approx([2e-3 * factor] * len(rates[1]))
    trainer.parts.loader.close()


def test_the_average_of_the_weights_follows_the_formula(tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.run_config(tmp_path / "run"))
    expected = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for n in range(3):
        trainer.train_step([next(trainer.parts.loader)])
        decay = min(0.9999, (1 + n) / (10 + n))
        for name, p in trainer.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
    trainer.parts.loader.close()
    for name, value in trainer.state.ema.weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first = finish(tiny.run_config(tmp_path / "a", train={"steps": 2}))
    second = finish(tiny.run_config(tmp_path / "b", train={"steps": 2}))
    other = finish(tiny.run_config(tmp_path / "c", train={"steps": 2}, seed=1))
    assert_equal_bits(state_of(first), state_of(second))
    assert not torch.equal(other.model.tokens.weight, first.model.tokens.weight)


def test_a_built_model_keeps_its_tied_weights_one_parameter(tmp_path: Path) -> None:
    for mode, tied in (("add", True), ("adaln", False)):
        model = new_start(tiny.run_config(tmp_path, mode=mode), tiny.tokenizer()).fill()
        assert (model.text_head.weight is model.tokens.weight) == tied
        assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_building_and_training_leave_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    precision = torch.get_float32_matmul_precision()
    config = tiny.run_config(tmp_path / "run", train={"steps": 1, "rows": 2})
    sequence = SequenceConfig(row=256, window=8)
    model = replace(config.model, vocabulary=0, context=256, patch=8, image_sizes=((16, 16),))
    config = replace(config, data=ScenesData(size=16, objects=(1, 1)), sequence=sequence, model=model)
    try:
        built = build_run(config)
        assert Trainer(built.parts).run()
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(built.parts.model, MonoFormer)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    trainer = tiny.trainer(tiny.run_config(tmp_path / "run", train={"steps": 4}))
    trainer.model.tokens.weight.register_hook(lambda g: g * torch.inf if trainer.loop.step == 1 else g)
    assert trainer.run()
    assert (trainer.loop.step, trainer.loop.bad_steps) == (4, 1)
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 3, 4], "the bad step is no figure"
    (written,) = (tmp_path / "run" / "bad-steps").glob("*.json")
    told = json.loads(written.read_text(encoding="utf-8"))
    assert told["step"] == 2
    assert told["loader"]["row"] or told["loader"]["document"], "where its documents are"


def test_a_bad_step_leaves_out_nothing_that_was_due_at_it(tmp_path: Path) -> None:
    seen: list[int] = []
    often = {"steps": 6, "checkpoint_every": 3, "sample_every": 3, "log_every": 2, "keep": 3}
    config = tiny.run_config(tmp_path / "run", train=often)
    trainer = tiny.trainer(config, sample=lambda step, averaged: seen.append(step))
    trainer.model.tokens.weight.register_hook(lambda g: g * torch.inf if trainer.loop.step in (2, 5) else g)
    assert trainer.run()
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003", "step-00000006"]
    assert seen == [3, 6]
    assert [(line["step"], line["bad_steps"]) for line in metrics_of(tmp_path / "run")] == [(2, 0), (4, 1), (6, 2)]
    assert (tmp_path / "run" / "curves.png").is_file()


def test_too_many_bad_steps_stop_the_run_and_leave_it_saved(tmp_path: Path) -> None:
    config = tiny.run_config(tmp_path / "run", train={"steps": 9, "bad_steps": 2})
    trainer = tiny.trainer(config)
    hook = trainer.model.tokens.weight.register_hook(lambda gradient: gradient * torch.nan)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=r"2 steps had no finite gradient; the run is saved at step 2.*--train.bad-st"):
        trainer.run()
    assert all(torch.equal(p, start[name]) for name, p in trainer.model.named_parameters()), "nothing moved"
    hook.remove()
    again = finish(replace(config, train=replace(config.train, bad_steps=4)))
    assert (again.loop.step, again.loop.bad_steps) == (9, 2), "the count is part of the run"
