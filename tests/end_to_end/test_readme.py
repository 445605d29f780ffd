"""The README's blocks run, with a tiny model in the place of the demo's."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image as PILImage

from monoformer.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "runs/demo/model"


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Arguments of every `monoformer` line, comments dropped."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("monoformer ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_python_block_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("python")
    assert MODEL in block
    monkeypatch.chdir(tmp_path)
    exec(block.replace(MODEL, str(run / "model")), {})
    with PILImage.open(tmp_path / "edited.png") as picture:
        assert picture.size == (32, 32)


def test_the_commands_that_use_a_model_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = []
    for arguments in commands():
        if arguments[0] in ("generate", "caption", "edit"):
            main([argument.replace(MODEL, str(run / "model")) for argument in arguments])
            done.append(arguments[0])
    assert done == ["generate", "caption", "edit"]
    assert (tmp_path / "square.png").is_file()


def test_every_command_named_exists_and_every_file_linked_is_there() -> None:
    assert {arguments[0] for arguments in commands()} <= set(COMMANDS)
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_tree_names_what_there_is() -> None:
    (tree,) = [block for block in blocks("text") if block.startswith("monoformer/")]
    for name in re.findall(r"^  ([a-z_]+(?:/|\.py))", tree, flags=re.MULTILINE):
        assert (ROOT / "monoformer" / name).exists(), name
