"""monoformer sweep: a chain and failures, resumed with the same bits, skipped when finished, and its table."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from torch import Tensor

from monoformer.cli.main import main
from monoformer.cli.training import read_config
from monoformer.config.sweep import load_sweep
from monoformer.presets import PRESETS
from monoformer.sweep import Job, plan
from monoformer.train.build import build_run
from monoformer.train.trainer import Trainer
from tests.end_to_end.conftest import SMALL

STUDY = """
title = "A tiny study"
preset = "scenes-quick"
overrides = "{small}"
scores = [
  {{ kind = "SceneScores", tasks = ["draw"], count = 2 }},
  {{ kind = "TextScores", name = "words", count = 4, data = {{ {words} }} }},
  {{ kind = "ForgettingScores", text = {{ count = 4, data = {{ {words} }} }} }},
]

[[runs]]
name = "words"
preset = "text-quick"
overrides = "--data.sources.0.files {text} --data.sources.0.characters 60 --data.sources.0.holdout 0.5"
scores = ["words"]

[[runs]]
name = "broken"
overrides = "--from no-such-folder/at-all/here"

[[runs]]
name = "after-broken"
overrides = "--from @broken"

[[runs]]
name = "pictures"
overrides = "--from @words"
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    text = folder / "words.txt"
    text.write_text("\n\n".join(f"The {n} red circles are left of the blue square." for n in range(40)))
    path = folder / "tiny.toml"
    words = f'files = ["{text}"], characters = 60, holdout = 0.5'
    path.write_text(STUDY.format(small=" ".join(SMALL), text=text, words=words))
    return path


def run(file: Path, folder: Path, *options: str) -> int:
    """Run the command; its exit code."""
    try:
        main(["sweep", str(file), f"--folder={folder}", *options])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, run once without a break."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(file, folder) == 1, "one run failed"
    return folder


def jobs(file: Path, folder: Path) -> dict[str, Job]:
    return {job.run.name: job for job in plan(load_sweep(file), folder, read=read_config)}


def test_one_line_of_results_a_run(finished: Path) -> None:
    words, broken, after, pictures = results(finished)
    assert [r["run"] for r in (words, broken, after, pictures)] == ["words", "broken", "after-broken", "pictures"]
    assert "no-such-folder" in broken["error"]
    assert "has not finished" in after["error"]
    measures = ("perplexity", "byte_perplexity", "word_perplexity", "bits_per_byte")
    assert list(words["scores"]) == [f"words_{measure}" for measure in measures]
    drawn, lost = ["draw_exact", "draw_colour", "draw_colour_and_shape"], dict(pictures["scores"])
    assert list(lost)[: len(drawn) + len(measures)] == [*drawn, *words["scores"]]
    assert lost["before_text_perplexity"] == pytest.approx(words["scores"]["words_perplexity"]), (
        "the run that it starts from"
    )
    assert pictures["steps"] == 4
    for key in ("documents", "tokens", "seconds", "parameters", "weight_bytes", "host_peak_gib", "text_loss"):
        assert pictures[key] > 0, key
    for key in ("commit", "version", "device", "finished", "arguments", "digest", "seed"):
        assert key in pictures, key
    assert pictures["documents"] > 8, "several documents a row"
    assert pictures["tokens"] <= 4 * 2 * PRESETS["scenes-quick"]().sequence.row


def test_a_finished_run_keeps_its_model_and_not_its_checkpoints(finished: Path, file: Path) -> None:
    path = jobs(file, finished)["pictures"].config.path
    for name in ("model/model.safetensors", "config.json", "metrics.jsonl", "curves.png"):
        assert (path / name).is_file(), name
    assert not (path / "checkpoints").exists()
    assert json.loads((path / "config.json").read_text())["start"] == str(
        jobs(file, finished)["words"].config.model_path
    )


def test_what_is_finished_is_skipped_and_what_failed_is_tried_again(finished: Path, file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("model.safetensors")}
    count = len(results(finished))
    assert run(file, finished) == 1
    assert [r["run"] for r in results(finished)[count:]] == ["broken", "after-broken"]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("model.safetensors")} == before


def test_the_table(finished: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(file, finished, "--table") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**A tiny study**"
    assert [line.split("|")[1].strip() for line in lines[4:8]] == ["words", "broken", "after-broken", "pictures"]
    assert [line.split("|")[2].strip() for line in lines[4:8]] == ["1 of 1", "0 of 1", "0 of 1", "1 of 1"]
    assert "broken-seed0 failed: ValueError" in lines[-2]
    with PILImage.open(finished / "study.png") as shown:
        assert shown.width > 1000, "several panels side by side"


def test_results_that_are_published_beside_the_file_are_in_its_table(
    finished: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / file.name
    published.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    published.with_suffix(".jsonl").write_text((finished / "results.jsonl").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert run(published, tmp_path / "nothing", "--table") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[4:8]] == ["1 of 1", "0 of 1", "0 of 1", "1 of 1"]
    assert run(published, tmp_path / "nothing", "--missing") == 1, "what failed is tried again, and fails again"
    assert [r["run"] for r in results(tmp_path / "nothing")] == ["broken", "after-broken"], "the rest is published"


def test_a_study_stopped_by_ctrl_c_goes_on_to_the_same_bits(
    finished: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs(file, tmp_path)["words"]

    def interrupt(step: int, weights: dict[str, Tensor]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    built = build_run(
        read_config([*job.arguments, "--train.sample-every=1", f"--name={job.name}", f"--folder={job.config.path}"])
    )
    assert not Trainer(built.parts, sample=interrupt).run()
    assert not job.config.model_path.exists()
    assert run(file, tmp_path) == 1
    for name in ("words", "pictures"):
        one, two = (jobs(file, folder)[name].config.model_path / "model.safetensors" for folder in (finished, tmp_path))
        assert one.read_bytes() == two.read_bytes(), name
    one, two = (
        [{**r["scores"], "losses": (r["text_loss"], r["image_loss"]), "digest": r["digest"]} for r in results(f)[:4:3]]
        for f in (finished, tmp_path)
    )
    assert one == two


def test_ctrl_c_stops_the_study_and_says_how_to_go_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs(file, tmp_path)["words"]
    job.config.path.mkdir(parents=True)
    step = Trainer.train_step

    def interrupting(self: Trainer, passes: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, passes)

    monkeypatch.setattr(Trainer, "train_step", interrupting)
    assert run(file, tmp_path) == 130
    said = capsys.readouterr().out
    assert "the same command goes on from here" in said
    assert f"monoformer sweep {file}" in said.replace("\n", "")
    assert not (tmp_path / "results.jsonl").exists()


def test_a_missing_file_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.toml", tmp_path) == 2
    assert "there is no sweep file" in capsys.readouterr().err


def test_scores_whose_files_are_not_here_are_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = 'title = "t"\npreset = "scenes-quick"\n[[runs]]\nname = "a"\n[[scores]]\n{}\n'
    for number, (score, said) in enumerate(
        {
            'kind = "TaskScores"\nfolder = "none"': "the folder 'none' does not hold",
            'kind = "ClassScores"\njudge = "none.safetensors"': "there is no judge 'none.safetensors'",
            'kind = "ForgettingScores"\ntext = { data = { files = ["none.txt"] } }': "no such file or folder",
        }.items()
    ):
        file = tmp_path / f"{number}.toml"
        file.write_text(study.format(score))
        assert run(file, tmp_path / str(number)) == 2
        assert said in capsys.readouterr().err
        assert not list((tmp_path / str(number)).glob("a-seed0*"))
