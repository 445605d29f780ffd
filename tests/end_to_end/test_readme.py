"""What the pages tell a user to type is understood, and what a tiny model can do of it is done."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image as PILImage

from monoformer.cli.main import COMMANDS, main
from monoformer.cli.training import read_config
from monoformer.config.data import ScenesData
from monoformer.config.run import RunConfig, from_json, save_config
from monoformer.data.scenes import Scenes
from monoformer.data.scenes.questions import answer
from monoformer.document import Document, Text
from monoformer.pipeline import Pipeline
from monoformer.presets import PRESETS
from monoformer.pretrained.folders import read_folder_config
from tests.pages import PAGES, ROOT, blocks, commands, inline_commands, lines, read

TRANSLATED = (("README.md", "README.zh-CN.md"), ("docs/quickstart.md", "docs/quickstart.zh-CN.md"))
"""Pages and their Chinese form."""

USED = ("README.md", "docs/quickstart.md", "docs/generate.md", "docs/edit.md")
"""Pages whose Python blocks, and commands on the demo's model, run one after the other."""


NAMING = ("comparison.md", "migration.md", "status.md", "tour.md")
"""Pages that point at files of the project, most of them inside the package."""


class _UnderstoodError(Exception):
    """The real parser took the whole line; what it asks for is not done."""


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop as soon as tyro has parsed their arguments into a configuration, which checks itself."""
    parse: Callable[..., Any] = tyro.cli

    def stop(*arguments: Any, **options: Any) -> None:
        parse(*arguments, **options)
        raise _UnderstoodError

    monkeypatch.setattr(tyro, "cli", stop)


@pytest.mark.usefixtures("parsing_only")
def test_every_command_of_every_page_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run.json", "cache/run.json", "runs/emoji/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_config(PRESETS["folder"](), tmp_path / name)
    given = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        given |= {tuple(found): page.name for found in [*commands(text), *inline_commands(text)]}
    assert len(given) > 60
    wrong = []
    for arguments, name in given.items():
        try:
            main(arguments)
        except _UnderstoodError:
            continue
        except SystemExit:
            wrong.append(f"{name}: monoformer {' '.join(arguments)}\n{capsys.readouterr().err}")
        else:
            wrong.append(f"{name}: monoformer {' '.join(arguments)} was done, not parsed")
    assert not wrong, "\n".join(wrong)
    with pytest.raises(SystemExit):  # so the test can fail
        main(["generate", "MODEL", "a circle", "--nmu", "2"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"`monoformer ([a-z]+)", text):
        assert command in COMMANDS, command
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), target
    for line in lines(text):
        for script in re.findall(r"(?:python|bash) ([\w/-]+\.(?:py|sh))", line):
            assert (ROOT / script).is_file(), script
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|sh|toml))`", text) if page.name in NAMING else []:
        assert any((folder / name).is_file() for folder in (ROOT, ROOT / "monoformer", ROOT / "tests/laws")), name


@pytest.mark.parametrize("name", USED)
def test_the_blocks_that_use_a_model_run(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "model", "models/monoformer-mini")
    names: dict[str, Any] = {}
    for block in blocks(read(name), "python"):
        exec(block, names)
    done = []
    for arguments in commands(read(name)):
        if arguments[0] in ("generate", "write", "caption", "edit") and "models/monoformer-mini" in arguments:
            main(arguments)
            done.append(arguments[0])
    assert done
    pictures = list(tmp_path.rglob("*.png"))
    assert pictures
    for path in pictures:
        with PILImage.open(path) as picture:
            assert min(picture.size) >= 32


def test_the_released_model_s_command_is_that_of_its_configuration() -> None:
    card = read("models/monoformer-mini/README.md")
    (command,) = [words for words in inline_commands(card) if words[0] == "train"]
    for page in ("README.md", "README.zh-CN.md"):
        assert command in inline_commands(read(page)), page
    config = read_config(command[1:])
    trained = from_json(RunConfig, json.loads(blocks(card, "json")[0]))
    folder = read_folder_config(ROOT / "models" / "monoformer-mini")
    assert replace(config.model, vocabulary=folder.model.vocabulary) == folder.model == trained.model
    assert (config.diffusion, config.generate) == (folder.diffusion, folder.generate)
    for room in ("diffusion", "tokenizer", "data", "sequence", "seed"):
        assert getattr(config, room) == getattr(trained, room), room
    watched = {"checkpoint_every": 0, "keep": 0, "sample_every": 0}
    assert {**vars(config.train), **watched} == {**vars(trained.train), **watched}


@pytest.mark.parametrize("page", [*USED, "README.zh-CN.md", "docs/quickstart.zh-CN.md", "examples/monoformer.ipynb"])
def test_questions_to_the_released_model_are_of_the_forms_it_was_trained_on(page: str) -> None:
    scenes = [Scenes(ScenesData(size=64, objects=(2, 3))).drawing(number).scene for number in range(100)]
    for question in re.findall(r'"((?:what|where|how many|is) [a-z ]+\?)\\?"', read(page)):
        assert any(answer(question, scene) for scene in scenes), question


def test_what_the_pages_say_to_the_released_model_makes_it_draw_by_itself() -> None:
    said = re.findall(r'Text\("([^"]+)", "user"\)', read("docs/generate.md"))
    said += re.findall(r'"role": "user", "content": "([^"]+)"', read("docs/serve.md"))
    said += re.findall(r'monoformer-mini "([^"]+)"', read("examples/interleaved_story.py"))
    assert len(said) > 3
    pipeline = Pipeline.from_pretrained(ROOT / "models" / "monoformer-mini", device="cpu")
    turns = [Document((Text(words, "user"),)) for words in said]
    for document, words in zip(pipeline.generate(turns, want="any", steps=1, max_tokens=40), said, strict=True):
        assert document.images, words


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED)
def test_both_languages_have_the_same_commands(english: str, chinese: str) -> None:
    ours, theirs = read(english), read(chinese)
    assert re.search(r"[\u4e00-\u9fff]", theirs)
    assert _shell(ours) == _shell(theirs)
    for language in ("python", "text"):
        assert [_code(block) for block in blocks(ours, language)] == [
            _code(block) for block in blocks(theirs, language)
        ]
    assert re.findall(r"!\[[^\]]*\]\(([^)]+)\)", ours) == re.findall(r"!\[[^\]]*\]\(([^)]+)\)", theirs)


def _shell(text: str) -> list[str]:
    """What is typed, without comments."""
    return [re.sub(r"\s+# .*", "", line) for line in lines(text)]


def _code(block: str) -> str:
    """A block without its comments and the words of the tree, which are translated."""
    return "\n".join(re.sub(r"(\s{2,}|\s*# ).*", "", line.strip()) for line in block.splitlines())


def test_the_tree_names_what_there_is() -> None:
    (tree,) = [block for block in blocks(read("README.md"), "text") if block.startswith("monoformer/")]
    for name in re.findall(r"^  ([a-z_]+(?:/|\.py))", tree, flags=re.MULTILINE):
        assert (ROOT / "monoformer" / name).exists(), name
