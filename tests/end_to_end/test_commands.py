"""What the pages tell a user to type is done, at a tiny size, in a folder where their names stand for real things.

Each page's commands run in its order, so that one finds what the one before left. Those that cannot run here are
listed, and their section must say what they need.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image as PILImage

from monoformer.cli.main import main
from monoformer.config.run import save_config
from monoformer.presets import PRESETS
from tests.contracts.test_evaluate import judge
from tests.contracts.test_language_scores import write_tasks
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_reproduce import autoencoder
from tests.pages import ROOT, commands, read

ELSEWHERE = r"(demo|chat|serve|sweep)\b"
"""Commands with tests of their own: test_command_line.py, test_sweep.py, serve/."""
NEEDING = "|".join(
    [
        r".*(TinyLlama/|--peer|--perceptual|--tasks\.harness|VIRTUAL_)",
        r"evaluate .*--suite (captions|images captions|scenes text)",
        r"evaluate runs/folder/model$",
        r"encode flickr8k|convert |generate runs/converted|data replay",
    ]
)
"""Commands that are not done here; their section must say what they need."""

SAYING = [
    f"docs/{name}.md"
    for name in (
        "data",
        "edit",
        "evaluate",
        "finetune",
        "generate",
        "llama",
        "migration",
        "paper-to-code",
        "quickstart",
        "scaling",
    )
]
"""Pages that are held to it."""

IN_ORDER = ("docs/llama.md", "docs/quickstart.md")
"""Pages that a reader follows from their first command to their last."""

TRAIN = [
    *("--train.steps=2", "--train.rows=2", "--train.warmup=1", "--sequence.window=16", "--train.sample-every=0"),
    *("--train.checkpoint-every=2", "--generate.steps=2"),
]
SHAPE = [option for option in SMALL if option.startswith("--model.")]


def tiny(words: list[str]) -> list[str]:
    """The command with what makes it small."""
    name, *rest = words
    match name:
        case "train" if "autoencoder" in rest[:1]:
            return [
                *words,
                "--train.steps=2",
                "--train.rows=2",
                "--train.warmup=1",
                "--widths",
                "8",
                "8",
                "8",
                "8",
                "--groups=4",
            ]
        case "train" | "encode":
            shaped = "--from" in rest or "--config" in rest
            return [*words, *TRAIN, *([] if shaped else SHAPE)]
        case "evaluate":
            images = ["--images.count=4", "--images.splits=1"] if "images" in words else []
            draws = {"images", "scenes", "captions", "classes", "composition"} & {*words} or "--suite" not in words
            return [*words, "--count=4", *images, *(["--sampling.steps=1"] if draws else [])]
        case "generate" | "edit":
            few = ["--num=2"] if "--num" in rest else []
            return [*words, *few, *([] if "--sampling.steps" in rest else ["--sampling.steps=1"])]
        case "write" | "caption":
            given = {"--sampling.max-tokens", "--choices"} & {*rest}
            return [*words, *([] if given else ["--sampling.max-tokens=4"])]
        case _:
            return words


@pytest.fixture
def world(run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the pages' names stand for real things."""
    monkeypatch.chdir(tmp_path)
    for name in ("models/monoformer-mini", "MODEL"):
        shutil.copytree(run / "model", name)
    shutil.copytree(pictures, "pictures")
    for name in ("BOOKS", "books", "data/text/books"):
        Path(name).mkdir(parents=True)
        words = (f"The {n}th fox ran over the hill, and nobody saw it again.\n\n" for n in range(120))
        (Path(name) / "a.txt").write_text("".join(words))
    for name in ("wikitext2_test.txt", "held-out.txt"):
        Path(name).write_text("The red circle is left of a blue square.\n" * 20)
    Path("FILE").write_text("a red circle\na blue ring\n")
    PILImage.new("L", (64, 64), 255).save("mask.png")
    count = 800  # the preset emoji holds out 200, and of the others 100 pairs
    table = {
        "image": [PILImage.new("RGB", (64, 64), (n % 256, 80, 200 - n % 200)) for n in range(count)],
        "caption": [f"picture {n}" for n in range(count)],
        "name": [f"thing {n // 4}" for n in range(count)],
        "label": [f"kind {n % 10}" for n in range(count)],
        "skin_tone": [("light", "medium", "dark", "default")[n % 4] for n in range(count)],
    }
    for name in ("EMOJI.parquet", "PAIRS.parquet", "test.parquet"):
        datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(name)
    for name in ("VAE", "AUTOENCODER"):
        autoencoder(Path(name))
    Path("runs/judges").mkdir(parents=True)
    judge(tmp_path).rename("runs/judges/resnet56.safetensors")
    np.savez("samples.npz", arr_0=np.zeros((4, 32, 32, 3), dtype=np.uint8))
    shutil.copytree(ROOT / "models" / "autoencoder-mini", "models/autoencoder-mini")
    shutil.copytree(run, "runs/emoji")
    shutil.copytree(pictures, "runs/held-out")
    write_tasks(Path("data/eval"))
    preset = PRESETS["folder"]()
    save_config(replace(preset, name="mine", data=replace(preset.data, root="pictures")), Path("run.json"))  # type: ignore[type-var]
    return tmp_path


def sections(text: str) -> list[str]:
    """A page's parts, each with its heading."""
    return re.split(
        r"^(?=#+ )", re.sub(r"^```.*?^```", _hidden, text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE
    )


def _hidden(block: re.Match[str]) -> str:
    """A block whose comments are not taken for headings."""
    return re.sub(r"^#", " #", block[0], flags=re.MULTILINE)


def follow(page: str) -> list[str]:
    """Do the commands of a page, one after the other; the names of those that were done.

    Trainings under one name are alternatives, of which a reader does one: the later takes the place of the one before.
    Not so on a page that is read in order.
    """
    done = []
    for section in sections(read(page)):
        for words in commands(section):
            said = " ".join(words)
            if re.match(ELSEWHERE, said):
                continue
            if re.match(NEEDING, said):
                assert page not in SAYING or re.search(r"\bneeds?\b", section), (
                    f"{page} does not say what this needs: {said}"
                )
                continue
            if words[0] == "train" and page not in IN_ORDER:
                shutil.rmtree(Path("runs") / words[1], ignore_errors=True)
            try:
                main(tiny(words))
            except SystemExit as stop:
                if stop.code:
                    raise AssertionError(f"{page}: monoformer {' '.join(tiny(words))}") from stop
            done.append(words[0])
    return done


def test_quickstart(world: Path) -> None:
    done = {*follow("docs/quickstart.md")}
    assert {"doctor", "generate", "caption", "edit", "write", "data", "train", "evaluate"} <= done


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *(page for page in SAYING if page != "docs/quickstart.md")])
def test_the_other_pages(page: str, world: Path) -> None:
    assert follow(page) or page == "docs/migration.md", "of that page nothing can be done here"
