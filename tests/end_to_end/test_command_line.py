"""The commands as a user types them, on real (tiny) runs: train, resume, fine-tune, draw, describe, edit, chat."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from rich.console import Console

from monoformer.cli.main import COMMANDS, main
from monoformer.cli.options import called, say_go_on
from monoformer.tokenizer import Tokenizer
from monoformer.train.checkpoint import checkpoints
from tests.end_to_end.conftest import SMALL


def load(path: Path | str) -> PILImage.Image:
    """A picture, its file closed again."""
    with PILImage.open(path) as picture:
        picture.load()
        return picture


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with exit code 2 and one line on stderr; the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in error
    *progress, last = error.strip().splitlines()  # reading parquet for the first time shows a bar
    assert last.startswith("monoformer: error: ")
    assert not any("error" in line for line in progress)
    return last


def test_a_run_leaves_everything(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["image_loss"] > 0 and line["text_loss"] > 0 for line in lines)
    for name in (
        "config.json",
        "curves.png",
        "samples/step-00000004.png",
        "model/model.safetensors",
        "model/README.md",
    ):
        assert (run / name).is_file(), name
    assert not list(run.rglob("*.incomplete"))


def test_a_finished_run_is_not_trained_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.jsonl").read_text()
    main(["train", "--config", str(run / "config.json")])
    assert (run / "metrics.jsonl").read_text() == before


def test_another_configuration_in_the_same_folder_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "train", "--config", str(run / "config.json"), "--seed=1")
    assert "seed was 0 and is now 1" in error


def test_generate_draws_what_it_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    main(["generate", str(run / "model"), "a large red circle", "--num=2", f"--out={out}", "--gallery"])
    first, second, gallery = capsys.readouterr().out.split()
    one, two = (np.array(load(path)) for path in (first, second))
    assert one.shape == two.shape == (32, 32, 3)
    assert not np.array_equal(one, two), "two seeds, two pictures"
    assert load(gallery).width > 32


def test_caption_edit_and_write(run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, picture, out = str(run / "model"), str(pictures / "0.png"), tmp_path / "edited.png"
    main(["caption", model, picture])
    assert capsys.readouterr().out.startswith(f"{picture}: ")
    asked = ["caption", model, picture, "--question", "how many things are there?"]
    main(asked)
    capsys.readouterr()
    main([*asked, "--choices", "zero", "a hundred"])
    assert capsys.readouterr().out.strip() in (f"{picture}: zero", f"{picture}: a hundred")
    mask = tmp_path / "mask.png"
    PILImage.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((16, 16), dtype=np.uint8))).save(mask)
    guided = ["--sampling.image-guidance=1.5", "--sampling.guidance-interval", "0.2", "0.9", "--sampling.negative=grey"]
    main(["edit", model, picture, "remove the red circle", f"--out={out}", f"--mask={mask}", *guided])
    before, after = (np.array(load(path).resize((32, 32), PILImage.Resampling.LANCZOS)) for path in (picture, out))
    assert np.array_equal(before[:16, 16:], after[:16, 16:]), "black in the mask"
    assert not np.array_equal(before[:16, :16], after[:16, :16])
    capsys.readouterr()
    main(["write", model, "The red circle", "A dog", "--precision=bf16"])
    assert "The red circle" in capsys.readouterr().out


def test_settings_of_words_are_given_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["write", str(run / "model"), "The red", "--sampling.max-tokens=6"]

    def written(*more: str) -> str:
        main([*command, *more])
        return capsys.readouterr().out.removesuffix("\n").removeprefix("The red")

    tokenizer = Tokenizer.from_folder(run / "model")
    wave, star = (tokenizer.encode(said, follows="text")[0] for said in "~*")
    assert written(f"--sampling.logit-bias={wave}:1e6") == "~" * 6
    assert written("--sampling.logit-bias", f"{wave}:1e6", f"{star}:2e6") == "*" * 6
    assert written(f"--sampling.logit-bias={wave}:1e6", "--sampling.stop", "*", "~~") == ""
    assert "ID:NUMBER, such as 300:2.5, but is 'x'" in fails(capsys, *command, "--sampling.logit-bias=x")


def test_settings_that_cannot_matter_are_refused_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture, file = str(tmp_path / "none"), str(pictures / "0.png"), tmp_path / "prompts.txt"
    file.write_text("a circle\n")
    for command, said in (
        (["write", model, "a", "--sampling.steps=5"], "steps has no effect where only text is wanted"),
        (["caption", model, picture, "--sampling.image-guidance=9"], "image-guidance has no effect where only text"),
        (["write", model, "a", "--choices=b", "--sampling.top-k=3"], "top-k has no effect on an answer that is one of"),
        (["generate", model, "a", "--sampling.temperature=0.7"], "temperature has no effect where only a picture is"),
        (["generate", model, f"--prompts={file}", f"--out={tmp_path}", "--sampling.stop=x"], "stop has no effect"),
        (["edit", model, picture, "a", "--sampling.max-tokens=3"], "max-tokens has no effect where only a picture"),
    ):
        assert f"--sampling.{said}" in fails(capsys, *command)


def test_chat_in_the_terminal(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = [f"/image {tmp_path / 'none.png'}", "a red circle " * 200]
    lines = iter(
        [f"/image {pictures / '0.png'}", *mistakes, "what shape is the red thing?", "/new", "a blue ring", "/quit"]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    main(["chat", str(run / "model"), f"--out={tmp_path}"])
    said = capsys.readouterr().out
    assert "Type a message" in said
    assert said.count("that did not work") == said.count("/new forgets it") == 2
    assert "there is no file" in said
    assert "too many for the model's context" in said


def test_what_cannot_be_written_or_read_is_a_one_line_error_before_the_model_is_loaded(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    (tmp_path / "file").write_text("")
    model, picture = str(run / "model"), str(pictures / "0.png")
    monkeypatch.setattr("monoformer.pipeline.Pipeline.from_pretrained", forbidden)
    for out, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "a.png", "is a file"), ("a.pgn", ".png")):
        assert said in fails(capsys, "generate", model, "a", f"--out={out}")
        assert said in fails(capsys, "edit", model, picture, "a", f"--out={out}")
    for given, said in (
        (["generate", model, "a", "--size", "40", "40"], "not trained to draw 40x40"),
        (["generate", model, "--prompts", picture, f"--out={tmp_path / 'x'}", "--size", "40", "40"], "40x40"),
        (["generate", model, "--prompts", picture, f"--out={tmp_path / 'file' / 'x'}"], "is a file"),
        (["generate", model, "a", "--strength=0.5"], "give --picture FILE"),
        (["generate", model, "a", f"--picture={picture}"], "ignores its picture"),
        (["edit", model, picture, "a", "--strength=2"], "at most 1"),
        (["edit", model, picture, "a", f"--mask={tmp_path / 'none.png'}"], "there is no file"),
        (["chat", model, f"--out={tmp_path / 'file' / 'x'}"], "is a file"),
        (["demo", f"--model={model}", f"--folder={tmp_path / 'file'}"], "is a file"),
        (["demo", "--train", "--preset=scenez"], "did you mean 'scenes'?"),
        (["convert", model, str(tmp_path / "x")], "is a model folder already"),
        (["convert", str(tmp_path / "file"), str(tmp_path / "x")], str(tmp_path / "file")),
        (["train", "--config", str(tmp_path)], f"{tmp_path}: Is a directory"),
    ):
        assert said in fails(capsys, *given)


def test_finetune_starts_from_a_model_and_keeps_its_tokenizer(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tuned"
    small = ["--train.steps=2", "--train.rows=2", "--train.warmup=1", "--sequence.window=8", "--train.sample-every=0"]
    named = [f"--data.root={pictures}", f"--folder={folder}", *small]
    assert "goes on from a model, but none is named; give --from MODEL" in fails(capsys, "train", "finetune", *named)
    named_model = ["train", "finetune", "--from", str(run / "model"), *named]
    for option in ("--model.width=16", "--diffusion.clamp-time=0.7", "--tokenizer.vocabulary=300"):
        error = fails(capsys, *named_model, option)
        assert "would have no effect: the run starts from" in error
        assert f"leave {option.partition('=')[0]} out" in error
    assert not (folder / "config.json").exists()
    main(named_model)
    assert "none new" in capsys.readouterr().out
    main(["train", "finetune", "--from", str(run / "model"), *named])
    assert "goes on from step 2" in capsys.readouterr().out
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / "model" / name).read_text() == (run / "model" / name).read_text()


def test_a_stopped_run_says_the_command_that_goes_on_as_a_shell_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "folder", "--data.root", "my pictures/" + "long/" * 30, "--data.prompts", "a {}", "[red] {}"]
    say_go_on(Console(), arguments)
    said = capsys.readouterr().out.strip().splitlines()
    assert shlex.split(said[-1]) == [called(), *arguments]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code in (0, None)
    assert "usage: monoformer" in capsys.readouterr().out


def test_misspelt_names_are_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'train'?" in fails(capsys, "trian")
    assert "did you mean 'scenes-quick'?" in fails(capsys, "train", "scenes-quik")
    with pytest.raises(SystemExit) as stop:
        main(["train", "scenes-quick", "--model.widht=3"])
    assert stop.value.code == 2
    assert "--model.width" in capsys.readouterr().err


def test_bad_data_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    assert "is not a folder" in fails(capsys, "train", "folder", f"--data.root={tmp_path / 'nowhere'}")
    assert str(tmp_path) in fails(capsys, "train", "folder", f"--data.root={tmp_path}")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("a thing")
    fails(capsys, "train", "folder", f"--data.root={tmp_path}", f"--folder={tmp_path / 'run'}")
    parquet = shared_data / "emoji128" / "train.parquet"
    column = ["--data.sources.0.image-column=picture", f"--data.sources.0.files={parquet}"]
    assert "picture" in fails(capsys, "train", "emoji", *column, f"--folder={tmp_path / 'run'}")


def test_a_contradicting_configuration_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "longer than model.context" in fails(capsys, "train", "scenes-quick", "--sequence.row=9999")
    assert "must be an even whole number" in fails(capsys, "train", "scenes-quick", "--model.width=100")
    assert "image_sizes" in fails(capsys, "train", "scenes-quick", "--data.size=64", f"--folder={tmp_path}")
    bad = tmp_path / "run.json"
    bad.write_text('{"model": {"widht": 3}}')
    assert "did you mean 'width'?" in fails(capsys, "train", "--config", str(bad))
    bad.write_text("{")
    assert "not valid JSON" in fails(capsys, "train", "--config", str(bad))


def test_a_bad_model_folder_or_prompt_is_a_one_line_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no model folder" in fails(capsys, "generate", str(tmp_path), "a thing")
    assert "too many for the model's context" in fails(capsys, "generate", str(run / "model"), "a red circle " * 200)
    assert "not trained to draw" in fails(capsys, "generate", str(run / "model"), "a thing", "--size", "40", "40")
    assert "there is no file" in fails(capsys, "caption", str(run / "model"), str(tmp_path / "none.png"))


def test_a_damaged_checkpoint_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "scenes-quick", f"--folder={tmp_path / 'run'}", *SMALL]
    main(arguments)
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    for file in newest.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    assert "is damaged" in fails(capsys, *arguments)


def test_demo_leaves_its_gallery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--train", f"--folder={tmp_path / 'demo'}", "--steps=2", "--count=2"])
    said = capsys.readouterr().out
    assert "monoformer train scenes" in said
    for name in ("gallery.png", "curves.png", "metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "demo" / name).is_file(), name
    assert "leave --model" in fails(capsys, "demo", "--train", "--model=a")
    assert "add --train" in fails(capsys, "demo", "--steps=2")


def test_demo_shows_a_model_and_the_prompts_of_its_card(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    card = (model / "README.md").read_text().replace("---\n", "---\nwidget:\n- text: a hand, light skin tone\n", 1)
    (model / "README.md").write_text(card)
    main(["demo", f"--model={model}", f"--folder={tmp_path / 'demo'}"])
    assert f"monoformer chat {model}" in capsys.readouterr().out.replace("\n", " ")
    gallery = tmp_path / "demo" / "gallery.png"
    tall = load(gallery).height
    assert tall > 1000
    (model / "README.md").unlink()
    main(["demo", f"--model={model}", f"--folder={tmp_path / 'demo'}"])
    assert 800 < load(gallery).height < tall, "without a card there are no prompts of its own"
