"""Processes that share a run: the same losses and weights as one process, whatever each of them holds."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, MuonConfig, OptimizerConfig
from monoformer.data.source import Indexed
from monoformer.document import Document, Text
from monoformer.train.metrics import read_metrics
from monoformer.train.parallel import ALONE, Ranks, rows_of_pass, spread
from monoformer.train.start import fill_parts, new_start
from monoformer.train.trainer import Trainer
from tests import tiny
from tests.ranks import together

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ADAMW, MUON = AdamWConfig(rate=1e-3, weight_decay=0.1), MuonConfig(rate=0.01, adamw_rate=1e-3, weight_decay=0.1)
DDP, FSDP = ParallelConfig(), ParallelConfig(strategy="fsdp")
HSDP = replace(FSDP, replicas=2)
STEPS, ROWS = 4, 4


@dataclass(frozen=True)
class Case:
    """A run of four steps of four rows, each row a pass."""

    name: str
    parallel: ParallelConfig
    mode: str = "adaln"
    optimizer: OptimizerConfig = ADAMW
    tolerance: float = 1e-5
    train: tuple[tuple[str, Any], ...] = ()

    def config(self, folder: Path, **train: Any) -> RunConfig:
        settings = {"steps": STEPS, "rows": ROWS, "pass_rows": 1, "optimizer": self.optimizer, **dict(self.train)}
        settings |= {"parallel": self.parallel, "checkpoint_every": 2}
        start = {"start": "a text model"} if settings.get("freeze") == "text" else {}
        return tiny.run_config(folder / self.name, mode=self.mode, train={**settings, **train}, **start)


FAST = (Case("ddp", DDP, mode="experts"), Case("fsdp muon", FSDP, optimizer=MUON, tolerance=1e-3))
SLOW = (
    Case("ddp muon", DDP, mode="experts", optimizer=MUON, tolerance=1e-3),
    Case("fsdp", FSDP, mode="experts"),
    Case("fsdp tied, selective", replace(FSDP, checkpointing="selective"), mode="add"),
    Case("fsdp unet, full", replace(FSDP, checkpointing="full"), mode="unet"),
    Case("fsdp vision", FSDP, mode="vision"),
    Case("fsdp frozen", FSDP, mode="experts", train=(("freeze", "text"),)),
    Case("fsdp bf16", FSDP, tolerance=1e-2, train=(("precision", "bf16"),)),
)
COMPILED = (Case("ddp", replace(DDP, compile=True), "token"), Case("fsdp", replace(FSDP, compile=True), "token"))
"""Several heads share a key."""
FOUR = (Case("hsdp", HSDP, mode="experts"), Case("hsdp muon", HSDP, optimizer=MUON, tolerance=1e-3))


def stream() -> Indexed:
    """Windows of words alone, and windows of documents with pictures."""

    def document(number: int) -> Document:
        random = Random(number)
        return tiny.document(random, images=True, most=2) if number // 12 % 2 else Document((Text(tiny.words(random)),))

    return Indexed(document)


def finish(config: RunConfig, ranks: Ranks = ALONE) -> Trainer:
    trainer = tiny.trainer(config, ranks=ranks, stream=stream())
    assert trainer.run()
    return trainer


def losses(config: RunConfig) -> list[dict[str, float]]:
    names = ("text_loss", "image_loss", "gradient_norm", "documents", "padding")
    return [{name: line[name] for name in names} for line in read_metrics(config.path / "metrics.jsonl")]


def outcome(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and averages, whole; on the first process."""
    whole, named = trainer.parts.ranks.whole, dict(trainer.model.named_parameters())
    found = {f"model {name}": p.detach() for name, p in whole(named).items()}
    return found | {f"average {name}": value for name, value in whole(trainer.state.ema.weights).items()}


def write(ranks: Ranks, weights: dict[str, Tensor], path: Path) -> None:
    if ranks.first:
        save_file({name: value.contiguous() for name, value in weights.items()}, path)


def session(ranks: Ranks, folder: Path, cases: tuple[Case, ...]) -> None:
    """In every process: each case straight to its end; and, but for the quickest, on from its own half."""
    for case in cases:
        write(ranks, outcome(finish(case.config(folder), ranks)), folder / f"{case.name}.safetensors")
        if case == FAST[0] and ranks.world == 2:
            continue
        with ranks.in_turn():
            if ranks.first:
                lend(case, folder, folder / "half")
        write(ranks, outcome(finish(case.config(folder / "half"), ranks)), folder / f"{case.name}-half.safetensors")
    draw_weights(ranks, folder)
    read_ragged(ranks, folder)
    go_in_turn(ranks, folder / "turn")


def go_in_turn(ranks: Ranks, path: Path) -> None:
    """The others find what the first process writes, however long it takes."""
    with ranks.in_turn():
        if ranks.first:
            time.sleep(0.3)
            path.write_text("written", encoding="utf-8")
        assert path.is_file()


def lend(case: Case, folder: Path, other: Path) -> None:
    """Begin the same run in `other` from the checkpoint that it had when half was done."""
    saved = case.config(folder).path / "checkpoints" / f"step-{STEPS // 2:08d}"
    target = case.config(other).path / "checkpoints"
    target.mkdir(parents=True)
    (target / saved.name).symlink_to(saved)


def draw_weights(ranks: Ranks, folder: Path) -> None:
    """New weights of a sharded network; what each process holds of it."""
    config, device = tiny.run_config(folder, mode="experts"), torch.device("cpu")
    recipe = new_start(config, tiny.tokenizer())
    model = fill_parts(recipe, FSDP, ranks, device=device, bf16=False)
    named = {name: p.detach() for name, p in model.named_parameters()}
    held = sum(p.to_local().numel() for p in named.values())  # type: ignore[attr-defined]
    (folder / f"held-{ranks.rank}").write_text(str(held), encoding="utf-8")
    write(ranks, ranks.whole(named), folder / "drawn.safetensors")


def read_ragged(ranks: Ranks, folder: Path) -> None:
    """Passes of the first case without an image, by process."""
    trainer = tiny.trainer(FAST[0].config(folder / "ragged"), ranks=ranks, stream=stream())
    batches = [next(trainer.parts.loader) for _ in range(STEPS * ROWS // ranks.world)]
    trainer.parts.loader.close()
    without = sum(not batch.images for batch in batches)
    (folder / f"without-{ranks.rank}").write_text(str(without), encoding="utf-8")


def check(folder: Path, alone: Path, case: Case) -> None:
    """Against one process: the losses, the weights; and the run resumed against itself, bit for bit."""
    straight = case.config(alone, parallel=ParallelConfig())
    expected, found = outcome(finish(straight)), load_file(folder / f"{case.name}.safetensors")
    torch.testing.assert_close(losses(case.config(folder)), losses(straight), rtol=case.tolerance, atol=0.0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.0, atol=10 * case.tolerance, msg=name)
    half = folder / f"{case.name}-half.safetensors"
    again = load_file(half) if half.is_file() else found
    assert [name for name, value in found.items() if not torch.equal(value, again[name])] == []


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    together(session, folder, FAST, world=2)
    return folder


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
def test_two_processes_train_as_one_and_resume_bit_for_bit(case: Case, two: Path, tmp_path: Path) -> None:
    check(two, tmp_path, case)


def test_some_passes_of_some_processes_have_no_image(two: Path) -> None:
    without = [int((two / f"without-{rank}").read_text()) for rank in range(2)]
    assert 0 < sum(without) < STEPS * ROWS
    assert without[0] != without[1]


def test_a_sharded_network_is_never_whole_and_its_weights_are_those_of_one_process(two: Path, tmp_path: Path) -> None:
    recipe = new_start(tiny.run_config(tmp_path, mode="experts"), tiny.tokenizer())
    expected = dict(recipe.fill().named_parameters())
    drawn = load_file(two / "drawn.safetensors")
    assert drawn.keys() == expected.keys()
    assert [name for name, p in expected.items() if not torch.equal(p, drawn[name])] == []
    held = [int((two / f"held-{rank}").read_text()) for rank in range(2)]
    assert sum(held) == sum(p.numel() for p in expected.values())
    assert max(held) < 0.6 * sum(held)


def test_one_process_goes_on_from_a_checkpoint_of_two(two: Path, tmp_path: Path) -> None:
    case = FAST[1]
    config = case.config(tmp_path)
    lend(case, two, tmp_path)
    finish(config)
    torch.testing.assert_close(losses(config), losses(case.config(two))[2:], rtol=case.tolerance, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "cases"), [(2, SLOW), (4, (*FAST, *FOUR))], ids=["2", "4"])
def test_processes_train_as_one_in_every_way(world: int, cases: tuple[Case, ...], tmp_path: Path) -> None:
    together(session, tmp_path, cases, world=world)
    for case in cases:
        check(tmp_path, tmp_path / "alone", case)


def finish_all(ranks: Ranks, folder: Path) -> None:
    """In every process: every run with compiled blocks."""
    for case in COMPILED:
        finish(case.config(folder), ranks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
def test_compiled_blocks_train_in_several_processes(tmp_path: Path) -> None:
    together(finish_all, tmp_path, world=2)
    plain = Case("plain", DDP, "token").config(tmp_path)
    finish(plain)
    for case in COMPILED:
        torch.testing.assert_close(losses(case.config(tmp_path)), losses(plain), rtol=1e-4, atol=0.0)


def go_on(ranks: Ranks, folder: Path, case: Case, steps: int) -> None:
    """In every process: the run in `folder`, up to a step."""
    finish(case.config(folder, steps=steps), ranks)


@pytest.mark.slow
def test_a_run_goes_on_from_one_world_to_another(tmp_path: Path) -> None:
    for number, case in enumerate((Case("adamw", DDP), Case("muon", DDP, optimizer=MUON, tolerance=1e-3))):
        straight = case.config(tmp_path / "straight", steps=6)
        finish(straight)
        folder = tmp_path / f"moved-{number}"
        together(go_on, folder, replace(case, parallel=HSDP), 2, world=4)
        finish(case.config(folder, steps=3))
        together(go_on, folder, replace(case, parallel=FSDP), 4, world=2)
        together(go_on, folder, case, 5, world=2)
        together(go_on, folder, replace(case, parallel=FSDP), 6, world=4)
        torch.testing.assert_close(losses(case.config(folder)), losses(straight), rtol=case.tolerance, atol=0.0)


def test_rows_that_cannot_be_dealt_evenly_are_refused() -> None:
    assert rows_of_pass(16, 0, 4) == 4
    assert rows_of_pass(16, 2, 4) == 2
    with pytest.raises(ValueError, match=r"3 processes with passes of 5 rows cannot share train.rows = 16 evenly"):
        rows_of_pass(16, 0, 3)
    with pytest.raises(ValueError, match=r"choose rows that 8 divides: --train.rows 16$"):
        rows_of_pass(12, 2, 4)


def test_copies_without_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add --train.parallel.strategy fsdp"):
        ParallelConfig(replicas=2)
    with pytest.raises(ValueError, match=r"replicas = 2 does not divide the 3 processes"):
        spread(tiny.model(), HSDP, Ranks(world=3), device=torch.device("cpu"), bf16=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(compile=True, checkpointing="selective"),
        ParallelConfig(checkpointing="selective"),
        ParallelConfig(checkpointing="full"),
    ],
    ids=["compiled", "selective", "full"],
)
def test_blocks_that_are_compiled_or_computed_again_train_as_others(parallel: ParallelConfig, tmp_path: Path) -> None:
    plain = Case("plain", ParallelConfig(), mode="experts").config(tmp_path)
    other = Case("other", parallel, mode="experts").config(tmp_path)
    expected, found = outcome(finish(plain)), outcome(finish(other))
    exact = not parallel.compile
    torch.testing.assert_close(losses(other), losses(plain), rtol=0.0 if exact else 1e-4, atol=0.0)
    if exact:
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
