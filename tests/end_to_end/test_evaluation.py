"""monoformer evaluate: one command, one JSON file, one table; resumed, refused, kept apart, put into the card."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from monoformer.card import read_card
from monoformer.cli.main import main
from monoformer.cli.scoring import build_scores, fitting_suites
from monoformer.cli.training import build_pipeline, read_config
from monoformer.config.data import FolderData, MixtureData, ScenesData, TextData
from monoformer.config.evaluate import CaptionScores, SceneScores
from monoformer.evaluate.build import build_evaluator
from monoformer.pipeline import Pipeline
from monoformer.train.build import build_run
from monoformer.train.curves import CURVES, panels_of
from monoformer.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL as TRAINED
from tests.end_to_end.test_command_line import fails

SMALL = ["--count=2", "--sampling.steps=1"]
FEW = ["--captions.among=2", "--captions.no-cider"]


def evaluate(run: Path, *arguments: str) -> int:
    """Run the command; its exit code."""
    try:
        main(["evaluate", str(run / "model"), *SMALL, *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def suites(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "scores.json").read_text())["suites"]
    return found


def test_one_command_one_file_one_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out={tmp_path / 'scores'}"
    assert evaluate(run, out) == 0  # what the card says of the training data is enough to choose
    (scenes,) = suites(tmp_path / "scores")
    assert scenes["suite"] == "scenes"
    assert scenes["settings"]["count"] == 2
    assert scenes["generate"]["steps"] == 1
    for key in ("commit", "command", "versions", "machine", "weights", "precision", "seconds", "finished", "digest"):
        assert scenes[key], key
    names = [figure["name"] for figure in scenes["figures"]]
    assert names[0] == "draw_exact"
    assert all(f["low"] <= f["value"] <= f["high"] and f["count"] == 2 for f in scenes["figures"])
    table = (tmp_path / "scores" / "scores.md").read_text()
    assert table in capsys.readouterr().out
    assert "| scenes | draw_exact | 0 | 0 to 0.6576 | 2 |" in table
    before = suites(tmp_path / "scores")
    assert evaluate(run, out) == 0
    assert "finished before" in capsys.readouterr().out
    assert suites(tmp_path / "scores") == before
    assert evaluate(run, out, "--seed=1", "--suite", "scenes") == 0
    assert suites(tmp_path / "scores")[0] == before[0]
    assert [suite["settings"]["seed"] for suite in suites(tmp_path / "scores")] == [0, 1], "kept apart"


def test_ctrl_c_keeps_what_is_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (f"--out={tmp_path}", "--suite", "captions", "scenes", "--batch=1", *FEW)
    drawn: list[int] = []
    draw = Pipeline.generate_images

    def interrupted(self: Pipeline, *given: Any, **settings: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(self, *given, **settings)

    monkeypatch.setattr(Pipeline, "generate_images", interrupted)
    assert evaluate(run, *arguments) == 130
    assert "the same command goes on from here" in capsys.readouterr().out
    assert not (tmp_path / "scores.json").exists()
    assert evaluate(run, *arguments) == 0
    assert "captions: finished before" in capsys.readouterr().out
    assert len(drawn) == 3, "two pictures, one of them tried twice"
    assert [suite["suite"] for suite in suites(tmp_path)] == ["captions", "scenes"]
    assert not list((tmp_path / "begun").iterdir())


def test_the_card_holds_the_table_and_its_command(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    before = card.read_text()
    for seed in (0, 5):
        assert evaluate(tmp_path, f"--out={tmp_path / 'scores'}", "--suite", "scenes", f"--seed={seed}", "--card") == 0
    after = card.read_text()
    assert after.count("## Scores") == 1
    assert after.count("| scenes | draw_exact |") == 1
    assert "--seed=5 --card`" in after
    assert read_card(after) == read_card(before)
    assert after.index("## Scores") < after.index("## Limits")


def test_what_was_drawn_from_captions_stands_beside_the_true_pictures(run: Path, tmp_path: Path) -> None:
    assert evaluate(run, f"--out={tmp_path}", "--suite", "captions", "--captions.drawn", "--captions.seen", *FEW) == 0
    (suite,) = suites(tmp_path)
    assert [figure["name"] for figure in suite["figures"]] == ["seen_drawing_found_among_2"]
    with PILImage.open(tmp_path / f"samples-{suite['digest']}.png") as picture:
        assert picture.width > 8 * 160


def test_wrong_suites_and_options_are_one_line_errors(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(run / "model"), f"--out={tmp_path}"
    assert "did you mean 'scenes'?" in fails(capsys, "evaluate", model, out, "--suite", "scens")
    assert "no text to read" in fails(capsys, "evaluate", model, out, "--suite", "scenes", "text")
    assert "give --seed instead" in fails(capsys, "evaluate", model, out, "--sampling.seed=1")
    assert "nothing was left out" in fails(capsys, "evaluate", model, out, "--suite", "composition")
    assert "trained from nothing" in fails(capsys, "evaluate", model, out, "--suite", "forgetting")
    unused = fails(capsys, "evaluate", model, out, "--suite", "scenes", "--text.stride=5")
    assert "--suite scenes text" in unused
    assert "neither write nor draw" in fails(capsys, "evaluate", model, out, "--suite", "text", "--sampling.steps=1")
    assert "--batch must be 1 or more" in fails(capsys, "evaluate", model, out, "--batch=0")
    assert not (tmp_path / "scores.json").exists()
    assert "did you mean" not in fails(capsys, "evaluate", str(tmp_path / "none"), out)


def test_scores_while_training_are_those_of_the_averaged_weights(run: Path, tmp_path: Path) -> None:
    built = build_run(
        read_config(
            [
                "scenes-quick",
                f"--folder={tmp_path / 'run'}",
                "--seed=3",
                *TRAINED,
                "--train.evaluate-every=5",
                "--train.evaluate-count=2",
            ]
        )
    )
    scores = build_scores(built, build_pipeline(built))
    untrained = built.parts.model.state_dict()
    first = scores(1, untrained)
    assert set(first) == {
        *("draw_exact", "draw_colour", "draw_colour_and_shape", "describe_exact", "edit_exact", "answer_exact")
    }
    trained = Pipeline.from_pretrained(run / "model", device="cpu").pretrained.model.state_dict()
    pipeline = Pipeline(replace(built.pretrained, model=copy.deepcopy(built.parts.model).eval()), slots=2)
    pipeline.pretrained.model.load_state_dict(trained)
    own = build_evaluator(SceneScores(count=2), pipeline, data=built.parts.config.data, batch=2)
    assert scores(2, trained) == dict(own.run())
    assert all(torch.equal(tensor, untrained[name]) for name, tensor in built.parts.model.state_dict().items())
    built.parts.loader.close()


def test_pictures_with_captions_are_scored_while_training_and_by_default(tmp_path: Path) -> None:
    for number in range(600):
        PILImage.new("RGB", (16, 16), (number % 256, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"red {number}")
    data = FolderData(root=str(tmp_path), size=16)
    told = fitting_suites(data)["captions"]
    assert isinstance(told, CaptionScores)
    assert (told.source, told.cider) == (tmp_path.name, False)
    assert 2 <= told.among < 10, "a few pictures are held out"
    assert not fitting_suites(replace(data, describe=0.0))
    assert not fitting_suites(replace(data, root=str(tmp_path / "gone")))
    mixed = MixtureData(sources=(data, ScenesData(), TextData(files=("gone.txt",))), weights=(1.0, 1.0, 1.0))
    assert list(fitting_suites(mixed)) == ["scenes", "captions"], "what is not here is left out"


def test_scores_of_data_that_no_suite_fits_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("some words\n" * 50)
    text = ["shakespeare", f"--data.files={tmp_path / 'a.txt'}", "--train.evaluate-every=2"]
    assert "train.evaluate_every needs data that a suite fits" in fails(capsys, "train", *text)


def test_a_run_writes_down_scores_while_it_trains(tmp_path: Path) -> None:
    every = ("--train.evaluate-every=3", "--train.evaluate-count=1", "--train.steps=4")
    main(["train", "scenes-quick", f"--folder={tmp_path}", *TRAINED, *every])
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "scores" in line]
    assert [line["step"] for line in lines] == [3, 4], "every third step, and the last"
    assert all(0 <= value <= 1 for line in lines for value in line["scores"].values())
    assert {"draw_exact", "describe_exact", "edit_exact", "answer_exact"} <= lines[0]["scores"].keys()
    assert "scores" in [name for name, _ in panels_of(lines, CURVES)], "the scores have a panel of their own"
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.slow
def test_a_folder_of_pictures_is_scored_while_it_is_learned(tmp_path: Path) -> None:
    for number in range(600):
        PILImage.new("RGB", (64, 64), (number % 256, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"red {number}")
    every = ("--train.evaluate-every=2", "--train.evaluate-count=4", "--train.steps=2")
    main(["train", "folder", f"--folder={tmp_path / 'run'}", f"--data.root={tmp_path}", *TRAINED, *every])
    (line,) = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "scores" in line]
    (name,) = line["scores"]
    assert name.startswith("caption_found_among_")
