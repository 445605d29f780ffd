"""The benchmarks run: `benchmarks/gpu.sh` at a tiny size on the CPU goes through every one of them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from monoformer.config.diffusion import DDPMConfig
from monoformer.config.run import load_config
from monoformer.config.train import AdamWConfig
from tests.end_to_end.conftest import SMALL

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_every_benchmark_runs_and_reports(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "SIZE": "tiny", "OUT": str(tmp_path)}
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {line["benchmark"]: line for line in lines}
    assert found.keys() == {"attention", "train_step", "denoise", "decode", "engine"}
    assert found["attention"]["largest_difference"] < 1e-5
    assert found["train_step"]["tokens_per_second"] > 0
    assert found["denoise"]["seconds_per_picture"].keys() == {"one", "same", "different", "long"}
    assert all(0 < share < 1 for share in found["denoise"]["matrix_peak_share"].values())
    assert found["decode"]["tokens_per_second"].keys() == found["decode"]["bandwidth_share"].keys() == {"1", "2"}
    engine = found["engine"]
    assert engine["mixed_over_serial"] > 0
    assert len(engine["latencies"]["mixed"]) == 4
    assert engine["cache_bytes_per_token"] == engine["predicted_bytes_per_token"]
    assert engine["memory_growth_bytes"] < 1e7
    assert found["train_step"]["peak_memory_bytes"] > 1e7


def test_quality_against_steps_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/quality.py", "--model", str(run / "model"), "--out", str(tmp_path)]
    small = ["--count=1", "--evaluations", "1", "2", "--guidances", "1", "2"]
    for _ in range(2):
        done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=True)
    best = json.loads(done.stdout.strip().splitlines()[-1])["best"]
    assert best.keys() == {"euler", "heun", "ddim", "ddim, eta 1", "dpm++2m"}, "those of flow models"
    points = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(points) == 4 * 2 + 1 + 2 + 5 + 3, "the second time found them all"
    assert (tmp_path / "quality.png").stat().st_size > 10_000


def test_errors_by_time_against_the_mean_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = ["--model", str(ROOT / "models" / "monoformer-mini"), "--times", "1", "0.5", "0.1", "--count", "4"]
    monkeypatch.setattr(sys, "argv", ["levels.py", *released])
    runpy.run_path(str(ROOT / "benchmarks" / "levels.py"), run_name="__main__")
    levels = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["levels"]
    assert [level["time"] for level in levels] == [1, 0.5, 0.1]
    assert len({level["mean_picture"] for level in levels}) == 1
    assert levels[2]["picture"] < levels[1]["picture"] < levels[0]["picture"] < levels[0]["mean_picture"]
    assert all(level["average"] < level["picture"] for level in levels)
    assert levels[1]["eps"] == pytest.approx(levels[1]["picture"]), "alpha equals sigma halfway along a flow"


def test_the_loader_is_timed_alone_and_with_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    network = ["--network=32", "--layers=1", "--heads=2", "--kv-heads=1", "--mlp-width=64", "--vocabulary=512"]
    small = [
        "--pictures=24",
        "--documents=8",
        "--window=4",
        "--size=32",
        "--steps=3",
        "--sequences=2",
        "--readers",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["data.py", *network, *small])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)  # the script sets it
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runpy.run_path(str(ROOT / "benchmarks" / "data.py"), run_name="__main__")  # in this process: imports take seconds
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for kind in ("folder", "parquet", "webdataset"):
        assert found[f"{kind}_documents_per_second"]["1"] > 0
        trained = found[f"{kind}_training"]
        assert 0 < trained["data_wait"] < 1
        assert trained["median_step_seconds"] > 0
    assert found["milliseconds_per_document"].keys() == {"decode", "resize", "plan", "tokens", "batch"}
    assert found["bytes_per_picture"] > 10_000


def test_time_to_quality_trains_both_recipes_in_turn_and_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--count=1", "--every=2", "--limit=1e-6", "--official-sampling=2", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["time_to_quality", *small, *SMALL, f"--tokenizer.path={run / 'model'}"])
    printed = []
    for _ in range(2):
        runpy.run_path(str(ROOT / "benchmarks" / "time_to_quality.py"), run_name="__main__")
        printed.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))
    assert printed[0] == printed[1], "the second time found all"
    found = printed[0]["recipes"]
    assert {name: recipe["step"] for name, recipe in found.items()} == {"ours": 2, "official": 2}
    assert all(recipe["operations"] > 1e6 and recipe["minutes"] > 0 for recipe in found.values())
    assert (tmp_path / "time-to-quality.png").stat().st_size > 10_000
    official = load_config(tmp_path / "official" / "config.json")
    assert official.train.optimizer == AdamWConfig(rate=1e-4, betas=(0.9, 0.999))
    assert (official.train.schedule, official.model.time) == ("constant", "projected_token")
    assert official.diffusion == DDPMConfig(variance="learned")
    ours = load_config(tmp_path / "ours" / "config.json")
    assert (official.data, official.model.width) == (ours.data, ours.model.width)
