"""The planner: its memory is what a real step holds, its arithmetic can be followed, and it says what to change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monoformer.cli.main import main
from monoformer.cli.training import read_config
from monoformer.config.parallel import Checkpointing
from monoformer.config.run import RunConfig
from monoformer.config.train import AdamWConfig, MuonConfig
from monoformer.device import total_memory
from monoformer.presets import PRESETS
from monoformer.train.machines import GPU_HOURS, RESTART, STORAGE, Machines, find_saving, goodput, transfer_seconds
from monoformer.train.memory import Live, activation_bytes, memory_of, state_bytes
from monoformer.train.parallel import Ranks, rows_of_pass
from monoformer.train.plan import GIB, make_plan, warn_of_memory
from monoformer.train.trainer import Trainer
from monoformer.train.workload import Pass, compose, resolved
from tests import tiny

FAST, SLOW = ("adaln",), ("token", "unet", "experts", "official")
LAYERS = 5


def shared(config: RunConfig, **parallel: Any) -> RunConfig:
    """The same run with other settings of `train.parallel`."""
    return replace(config, train=replace(config.train, parallel=replace(config.train.parallel, **parallel)))


def trainer(mode: str, folder: Path, how: Checkpointing) -> Trainer:
    changes = {"width": 64, "layers": LAYERS, "mlp_width": 96, "image_sizes": ((16, 16),)}
    config = tiny.run_config(folder, model=tiny.model_config(mode, **changes))
    return tiny.trainer(shared(config, checkpointing=how))


def batch_of(mode: str) -> Any:
    """Two rows of text and one drawn picture of 4x4 patches each."""
    picture = tiny.image(tiny.Random(0), target=True, role="assistant", size=(16, 16))
    own = tiny.sequencer(mode, context="noised")
    document = tiny.Document((tiny.Text("red circle left of a square", "user"), picture))
    return tiny.in_rows([own.document(document, n, seed=0) for n in range(2)], rows=2, padding=0)


def held(own: Trainer, batch: Any) -> int:
    """Most bytes that operations of a real pass made and held, gradients aside."""
    for parameter in own.model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    known = [batch.ids, *own.model.parameters()]
    with Live(known) as live:
        text, image = own.losses(batch)
        (text + image).backward()  # type: ignore[no-untyped-call]
    own.parts.loader.close()
    return live.peak


@pytest.mark.parametrize("how", ["none", pytest.param("selective", marks=pytest.mark.slow), "full"])
@pytest.mark.parametrize("mode", [*FAST, *(pytest.param(mode, marks=pytest.mark.slow) for mode in SLOW)])
def test_the_activations_are_those_of_a_real_pass(mode: str, how: Checkpointing, tmp_path: Path) -> None:
    own, batch = trainer(mode, tmp_path, how), batch_of(mode)
    (slots,) = batch.images
    load = Pass(
        rows=2, tokens=batch.ids.shape[1], labelled=batch.labelled, images=len(slots.row), grid=slots.grid
    )  # fmt: skip
    planned = activation_bytes(own.model.config, load, bf16=False, checkpointing=how, dense=True)
    assert planned == pytest.approx(held(own, batch), rel=0.15)


@pytest.mark.slow  # ten networks
def test_checkpointing_and_bf16_save_memory() -> None:
    load = Pass(rows=4, tokens=128, labelled=64, images=4, grid=(4, 4))
    config = tiny.model_config(width=64, layers=LAYERS)
    levels: tuple[Checkpointing, ...] = ("none", "selective", "full")
    none, selective, full = (activation_bytes(config, load, bf16=False, checkpointing=how) for how in levels)
    assert full < 0.6 * selective < 0.6 * none
    assert activation_bytes(config, load, bf16=True) < 0.9 * none
    assert activation_bytes(config, load, bf16=True, cast=False) < activation_bytes(config, load, bf16=True)


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig()], ids=lambda o: type(o).__name__)
def test_weights_and_state_are_those_of_a_real_run(optimizer: Any, tmp_path: Path) -> None:
    own = tiny.trainer(tiny.run_config(tmp_path, train={"optimizer": optimizer}))
    own.train_step([next(own.parts.loader)])
    own.parts.loader.close()
    load = Pass(rows=1, tokens=32, labelled=8, images=1, grid=(1, 1))
    memory = memory_of(own.config, load, bf16=False, on_cpu=True)
    state = [value for o in own.state.optimizers for entry in o.state.values() for value in entry.values()]
    bytes_of = [tensor.numel() * 4 for tensor in state if isinstance(tensor, Tensor) and tensor.ndim]
    assert memory.optimizer == sum(bytes_of)
    weights = sum(p.numel() * 4 for p in own.model.parameters())
    assert memory.weights == memory.average == memory.gradients == weights
    assert state_bytes(own.config) == sum(bytes_of) + 2 * weights
    divided = memory_of(shared(own.config, strategy="fsdp"), load, bf16=False, processes=4)
    assert (divided.weights, divided.optimizer) == (memory.weights / 4, memory.optimizer / 4)
    assert divided.gathered > 0
    copies = memory_of(shared(own.config, strategy="fsdp", replicas=2), load, bf16=False, processes=4)
    assert (copies.weights, copies.gathered) == (memory.weights / 2, divided.gathered)
    alone = memory_of(shared(own.config, strategy="fsdp"), load, bf16=False, on_cpu=True)
    assert replace(alone, accumulates=memory.accumulates) == memory, "one process holds all in any case"


def test_the_peak_is_activations_or_gradients() -> None:
    """In one pass activations are gone when the last gradients come; accumulated gradients are there all the time."""
    config = tiny.run_config(Path("unused"))
    load = Pass(rows=4, tokens=96, labelled=64, images=4, grid=(2, 2))
    memory = memory_of(config, load, bf16=False, on_cpu=True)
    held = memory.weights + memory.optimizer + memory.average + memory.runtime
    passing = memory.activations + memory.logits
    assert passing > memory.gradients + memory.working
    assert memory.peak == pytest.approx(held + passing)
    accumulating = memory_of(config, load.times(0.5), bf16=False, on_cpu=True)
    assert (accumulating.accumulates, memory.accumulates) == (True, False), "two passes a step, or one"
    assert replace(memory, accumulates=True).peak == pytest.approx(held + passing + memory.gradients)
    among = [
        memory_of(shared(config, strategy=strategy), load, bf16=False, processes=2) for strategy in ("ddp", "fsdp")
    ]
    assert [own.accumulates for own in among] == [True, False], "DDP holds its buckets at all times"
    assert replace(memory, activations=0.0, logits=0.0).peak == pytest.approx(held + memory.gradients + memory.working)


def test_the_mixture_of_a_step_is_that_of_the_sources() -> None:
    config = PRESETS["transfusion-0.16b"]()
    load, seen, _ = compose(config, rows=8)
    per_row = 4096 * 0.78 * 1.0 / (0.22 * 1000 + 0.78 * 290)  # 4000 letters are 1000 tokens, a pair is 290
    assert load.images == pytest.approx(8 * per_row, abs=1)
    assert load.labelled == 8 * 4096 - 256 * load.images
    assert 145 < seen < 500, "half a document, of either kind"
    given, _, _ = compose(config, rows=8, images=3.0)
    assert given.images == 24
    scenes, _, _ = compose(PRESETS["scenes-quick"](), rows=8)
    assert scenes.images > 8


def test_transfers_and_goodput_can_be_followed() -> None:
    config, guessed = resolved(PRESETS["transfusion-0.16b"]())
    assert "32,000" in guessed[0]
    with torch.device("meta"):
        model = tiny.MonoFormer(config.model)
    everything = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.transformer.blocks.parameters())
    assert transfer_seconds(model, config, Machines()) == 0.0
    eight = transfer_seconds(model, shared(config, strategy="ddp"), Machines(gpus=8))
    assert eight == pytest.approx(8 * everything * 7 / 8 / 450e9)
    config = replace(config, train=replace(config.train, rows=64))
    whole = transfer_seconds(model, config, Machines(gpus=16))
    assert whole == pytest.approx((4 * blocks + 4 * (everything - blocks) + 4 * everything) * 15 / 16 / 50e9)
    hybrid = transfer_seconds(model, shared(config, replicas=2), Machines(gpus=16))
    assert hybrid < 0.3 * whole, "weights stay within a machine"
    saving = find_saving(config, Machines(gpus=16), step_seconds=0.1, failure_hours=0.0)
    assert saving.failure_hours == GPU_HOURS / 16
    assert saving.seconds == pytest.approx(16 * everything / (2 * STORAGE))
    assert goodput(600, 10, hours=3) == pytest.approx(1 - (300 + 20 + RESTART) / 10800)


def test_the_command_prints_a_plan_and_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["plan", "scenes-quick", "--gpu", "l4", "--train.rows", "4"]
    main([*small, "--json", "--model.layers", "2"])
    made = json.loads(capsys.readouterr().out)
    assert made["fits"]
    assert made["machines"]["gpu"] == "l4"
    assert made["tokens_per_step"] == 4 * PRESETS["scenes-quick"]().sequence.row
    assert made["peak"] < made["capacity"] == 22 * 2**30
    assert made["pace"]["days"] == pytest.approx(
        made["pace"]["step_seconds"] * PRESETS["scenes-quick"]().train.steps / 86400
    )
    assert made["parallel"]["strategy"] == "ddp"
    main([*small, "--model.layers", "2", "--gpus", "2", "--train.parallel.strategy", "fsdp"])
    said = capsys.readouterr().out
    assert "scenes-quick on 2 l4, fsdp" in said
    assert "activations" in said
    assert "fits" in said
    for wrong, answer in (
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--strategy", "fsdp"], "--train.parallel.strategy"),
    ):
        with pytest.raises(SystemExit):
            main([*small, *wrong])
        assert answer in capsys.readouterr().err


BIG = ["scenes-quick", "--model.layers=2", "--model.width=4096", "--model.heads=32", "--model.kv-heads=32",
       "--model.mlp-width=11008", "--model.vocabulary=8192"]  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "arguments", "changed"),
    [
        (1, "--train.rows 225 --train.parallel.strategy fsdp", {"--train.pass-rows"}),
        pytest.param(
            8, "--train.rows 8 --model.width 8192", {"--train.parallel.strategy"}, marks=pytest.mark.slow
        ),
        pytest.param(
            8, "--train.rows 8 --sequence.row 40000 --model.context 40000", {"--train.parallel.checkpointing"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rows", "parts", "checkpointing"],
)  # fmt: skip
def test_training_accepts_the_advice_and_then_it_fits(gpus: int, arguments: str, changed: set[str]) -> None:
    machines, command = Machines(gpus=gpus, gpu="l4"), [*BIG, *arguments.split()]
    made = make_plan(read_config(command), machines)
    assert not made.fits
    (line,) = [line for line in made.advice if "does not fit" in line]
    options = line.split(" would do with ")[1].split()
    assert set(options[::2]) == changed
    assert make_plan(read_config([*command, *options]), machines).fits


def test_the_plan_says_what_training_would_refuse() -> None:
    config = tiny.run_config(Path("unused"), train={"rows": 8, "pass_rows": 4})
    with pytest.raises(ValueError, match="evenly") as refused:
        rows_of_pass(8, 4, 4)
    assert str(refused.value) in make_plan(config, Machines(gpus=4)).advice
    with pytest.raises(ValueError, match=r"replicas = 3 does not divide the 4 processes"):
        make_plan(shared(config, strategy="fsdp", replicas=3), Machines(gpus=4))


def test_training_warns_of_what_does_not_fit_and_only_then() -> None:
    huge, _ = resolved(PRESETS["transfusion-7b"]())
    cpu = torch.device("cpu")
    (line,) = warn_of_memory(replace(huge, train=replace(huge.train, rows=64)), cpu)
    assert "monoformer plan" in line
    capacity = total_memory(cpu) / GIB
    assert f"{cpu} has {capacity:.1f}; lower" in line
    two = replace(huge, train=replace(huge.train, rows=128))
    (line,) = warn_of_memory(shared(two, strategy="ddp"), cpu, Ranks(world=2, local_world=2))
    assert f"{cpu} has {capacity / 2:.1f} for each process" in line
    small, _ = resolved(PRESETS["scenes-quick"]())
    assert list(warn_of_memory(small, cpu)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name: str) -> None:
    made = make_plan(shared(PRESETS[name](), strategy="fsdp", checkpointing="full"), Machines(gpus=8))
    assert made.peak > made.memory.runtime
    assert made.pace.days > 0
