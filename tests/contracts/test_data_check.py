"""docs/data.md's examples run; `monoformer data check` reports what is there, and what is wrong."""

import re
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from monoformer.cli.main import main
from monoformer.config.data import MixtureData, check_named
from monoformer.data.build import build_source
from monoformer.document import Document
from monoformer.train.survey import padding, spread
from tests import tiny

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
KINDS = {"FolderData", "ParquetData", "StreamData", "ChatData", "InterleavedData", "TextData", "ScenesData"}


def save(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, (len(path.name) * 20, 100, 50)).save(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's examples read: the files that it shows, and pictures, tars and books that it only names."""
    root = tmp_path_factory.mktemp("page")
    for name in ("captioned/fox.png", "captioned/owl.png"):
        save(root / name)
    for name, content in re.findall(r"```(?:json|text) (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        (root / name).write_text(content, encoding="utf-8")
    for folder in ("n01440764", "n02123045"):
        save(root / "imagenet" / folder / "a.JPEG")
    cell = {"bytes": (root / "captioned" / "fox.png").read_bytes(), "path": "fox.png"}
    pq.write_table(pa.Table.from_pylist([{"image": cell, "name": "fox", "tone": "dark"}] * 2), root / "pairs.parquet")
    (root / "shards").mkdir()
    (root / "words.txt").write_text("a fox")
    for shard in range(2):
        with tarfile.open(root / "shards" / f"{shard}.tar", "w") as tar:
            tar.add(root / "captioned" / "fox.png", arcname="fox.png")
            tar.add(root / "words.txt", arcname="fox.txt")
    (root / "books").mkdir()
    (root / "books" / "one.txt").write_text("\n\n".join(f"It was day {day}." for day in range(60)))
    return root


@pytest.fixture
def here(files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(files)
    return files


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_example_of_the_page_gives_documents(block: str, here: Path) -> None:
    names: dict[str, Any] = {}
    exec(block, names)
    data = names["data"]
    check_named(data)
    if isinstance(data, MixtureData):  # the pictures' sizes are the model's, which check and train fill in
        assert (here / "run.json").is_file()
        return
    documents = list(islice(build_source(data), 30))
    assert all(isinstance(document, Document) for document in documents), documents


def test_the_page_has_an_example_of_every_source() -> None:
    assert set(re.findall(r"^data = (\w+)\(", PAGE, flags=re.MULTILINE)) == KINDS | {"MixtureData"}


def test_the_check_reports_every_source_and_draws_a_sheet(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[-1], {})
    main(["data", "check", "--config", "run.json", "--documents=40", "--out", "sheets/mine.png"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        *("captioned", "chat", "documents read 40, of which 40 can be used", "tokens a document mean"),
        *("48x80: 40", "patches", "16 rows of 282 tokens a step:", "contact sheet: sheets/mine."),
    ):
        assert words in said, words
    with PILImage.open(here / "sheets" / "mine.png") as sheet:
        assert min(sheet.size) > 200
    assert not (here / "runs").exists(), "the run's folder stays as it was"


def test_the_check_ends_with_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        save(tmp_path / "cats" / f"{number}.png")
        if number % 3 == 0:
            (tmp_path / "cats" / f"{number}.png").write_bytes(b"torn")
    (tmp_path / "cats" / "raw.heic").write_bytes(b"heic")
    command = [
        "data",
        "check",
        "folder",
        "--data.root",
        str(tmp_path),
        "--documents",
        "90",
        "--out",
        str(tmp_path / "a.png"),
    ]
    with pytest.raises(SystemExit) as stop:
        main(command)
    said = capsys.readouterr()
    assert stop.value.code == 2
    table = " ".join(said.out.replace("│", " ").split())
    assert "skipped: broken picture" in table
    assert "files that are no pictures 1 (.heic: 1)" in table
    assert re.search(r"error: \d+ of 90 documents of the source .* cannot be used.*--train\.skip-limit", said.err)
    main([*command, "--train.skip-limit", "0.5"])


def test_a_folder_of_torn_pictures_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.tokenizer().save(tmp_path / "words")
    (tmp_path / "own" / "cats").mkdir(parents=True)
    (tmp_path / "own" / "cats" / "tom.png").write_bytes(b"torn")
    folder = ["folder", "--data.root", str(tmp_path / "own"), "--folder", str(tmp_path / "run")]
    named = [*folder, "--tokenizer.path", str(tmp_path / "words")]
    for command in (["train", *folder], ["data", "check", *folder], ["data", "check", *named, "--documents=3"]):
        with pytest.raises(SystemExit):
            main(command)
        said = capsys.readouterr().err
        assert re.search(r"(no document of|documents of) .* be used.* broken picture.*tom\.png", said), said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "data has the commands check and replay"),
        (["check", "folder", "--documents", "none"], "--documents must be a number"),
        (["check", "folder", "--out"], "--out needs a value"),
        (["check", "folder"], r"data\.root is empty"),
    ],
)
def test_what_the_check_cannot_do_it_says(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["data", *arguments])
    assert re.search(message, capsys.readouterr().err)


def test_padding_and_spread_are_what_they_say() -> None:
    assert padding([6, 4, 5], 10) == pytest.approx(0.25)
    assert padding([7], 10) == pytest.approx(0.3)
    assert spread([5]) == "mean 5, median 5, 95% up to 5, 5 to 5"
    assert spread(list(range(1, 102))) == "mean 51, median 51, 95% up to 96, 1 to 101"
