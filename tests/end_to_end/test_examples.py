"""Every example runs as its first lines say, at a tiny size; the notebook is valid and its code is understood."""

import ast
import json
import re
import runpy
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from transformers import LlamaConfig

from monoformer.cli.main import COMMANDS, main
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_language_model import RUN, SHAPE, language_model
from tests.pages import ROOT

EXAMPLES = ROOT / "examples"
QUICK = [*SMALL, "--train.sample-every=0", "--train.steps=2"]


def example(name: str, *arguments: object) -> None:
    """Run an example as a program of its own."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_examples_are_short_and_listed() -> None:
    said = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert f"`{path.name}`" in said
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name


def test_laptop_scenes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("laptop_scenes", *QUICK)
    assert re.search(r"draw_exact: \d+\.\d%", capsys.readouterr().out)
    assert (here / "runs/laptop-scenes/drawn.png").is_file()


def test_class_folder(here: Path) -> None:
    for number, name in enumerate(["cat", "dog"]):
        (here / "classes" / name).mkdir(parents=True)
        for index in range(3):
            PILImage.new("RGB", (20, 20), (100 * number, 80 * index, 9)).save(here / "classes" / name / f"{index}.png")
    example("class_folder", "classes", *QUICK, "--model.image-sizes", "16", "16", "--sequence.row=64")
    assert (here / "runs/class-folder/classes.png").is_file()


def test_from_llama(here: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = language_model(here / "llama", LlamaConfig(**SHAPE))
    example("from_llama", llama, pictures, *RUN, "--train.sample-every=0")
    said = capsys.readouterr().out
    assert "new ones" in said
    assert "word for word what it wrote before" in said
    assert (here / "runs/from-llama/drawn.png").is_file()


def test_interleaved_story(here: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("interleaved_story", run / "model", "a small blue ring", "make the ring red", "--out", "story.png")
    assert capsys.readouterr().out.count("> ") == 2
    assert (here / "story.png").is_file()


def test_edit_picture(here: Path, run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("edit_picture", run / "model", pictures / "0.png", "make the red circle blue")
    assert "outside the mask nothing changed" in capsys.readouterr().out
    assert (here / "edits.png").is_file()


def test_the_notebook_is_valid_and_its_code_is_understood() -> None:
    notebook = json.loads((EXAMPLES / "monoformer.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = [("".join(cell["source"]), cell) for cell in notebook["cells"]]
    assert {cell["cell_type"] for _, cell in cells} == {"markdown", "code"}
    assert len({cell["id"] for _, cell in cells}) == len(cells)
    for text, cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse(re.sub(r"^[!%].*", "pass", text, flags=re.MULTILINE))
            for command in re.findall(r"^!python -m monoformer (\w+)", text, flags=re.MULTILINE):
                assert command in COMMANDS


@pytest.mark.slow
def test_the_notebook_s_cells_run_one_after_the_other(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands at a tiny size, on the vocabulary of a run that is there; what installs the package is left out."""
    shown: list[Any] = []
    notebook_only = types.ModuleType("IPython.display")  # what a notebook brings; not among the tools for tests
    notebook_only.Image = Path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", notebook_only)
    tiny = {
        "train": [*QUICK, f"--tokenizer.path={run / 'model'}"],
        "evaluate": ["--count=2", "--sampling.steps=1"],
    }
    names: dict[str, Any] = {"display": shown.append}
    done = []
    for cell in json.loads((EXAMPLES / "monoformer.ipynb").read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] != "code" or cell["id"] == "install":
            continue
        for line in [line for line in lines if line.startswith("!")]:
            name, *arguments = shlex.split(line.removeprefix("!python -m monoformer "))
            main([name, *arguments, *tiny.get(name, [])])
            done.append(name)
        exec("\n".join(line for line in lines if not line.startswith(("!", "%"))), names)
    assert done == ["doctor", "train", "evaluate"]
    assert Path("runs/scenes-quick/curves.png").is_file()
    assert [picture.size for picture in shown] == [(256, 256)] * 3
    assert "draw_exact" in capsys.readouterr().out
