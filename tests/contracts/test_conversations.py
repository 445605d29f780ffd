"""Conversations and interleaved documents in every form, bad ones among them, torn shards, pictures of any shape."""

import base64
import json
import re
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as PILImage

from monoformer.config.data import FolderData, TokenizerConfig, check_named
from monoformer.config.sources import ChatData, InterleavedData, StreamData
from monoformer.data.build import build_held_out, build_source
from monoformer.data.chat import Chats
from monoformer.data.images import FolderPictures
from monoformer.data.interleaved import Interleaved
from monoformer.data.pictures import read_as
from monoformer.data.skipped import BadDocument
from monoformer.data.source import usable
from monoformer.document import Document, Image
from monoformer.framing import nearest_size
from monoformer.train.build import build_loader, plan_all, train_tokenizer
from monoformer.train.sizes import check_sizes, sized
from tests import tiny

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
U, A = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


def saved(path: Path, width: int = 20, height: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (width, height), "red").save(path)
    return path


def words(document: Document) -> list[tuple[str | None, str]]:
    """Roles and texts; pictures as `context` or `target`."""
    return [
        (part.role, ("target" if part.target else "context") if isinstance(part, Image) else part.text)
        for part in document.segments
    ]


def chats(root: Path, rows: list[Any], **options: Any) -> Chats:
    (root / "chat.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    return Chats(ChatData(files=(str(root / "chat.jsonl"),), size=8, holdout=0.0, **options))


def read_one(root: Path, row: Any, **options: Any) -> Document:
    saved(root / "pictures" / "a.png")
    return chats(root, [row], images=str(root / "pictures"), **options).document(0).read()


HELLO = [("user", "hello"), ("assistant", "hi")]
FORMS = [
    ({"messages": [U, A]}, HELLO),
    ({"messages": [{"role": "system", "content": "Be kind."}, U, A, U]}, [("system", "Be kind."), *HELLO]),
    ({"messages": [U, U, A]}, [("user", "hello\nhello"), HELLO[1]]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url",
      "image_url": {"url": "a.png"}}]}, A]}, [("user", "see"), ("user", "context"), ("assistant", "hi")]),
    ({"messages": [U, {"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}]},
     [("user", "hello"), ("assistant", "target")]),
    ({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}, HELLO),
    ({"data": ["hello", "hi"], "id": "0"}, HELLO),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "What?\n<image>"},
      {"from": "gpt", "value": "Red"}]}, [("user", "What?"), ("user", "context"), ("assistant", "Red")]),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "What?"},
      {"from": "gpt", "value": "Red"}]}, [("user", "context"), ("user", "What?"), ("assistant", "Red")]),
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("user", "Add.\n1 2"), ("assistant", "3")]),
    ({"question": "1 + 2?", "answer": "3"}, [("user", "1 + 2?"), ("assistant", "3")]),
    *(({"messages": [{"role": "system", "content": content}, U, A]}, HELLO) for content in ("", " ", None, [])),
    ({"messages": [U, {"role": "system", "content": ""}, A]}, HELLO),
    ({"messages": [{"role": "developer", "content": "Be kind."}, U, A]}, [("system", "Be kind."), *HELLO]),
    ({"system": "Be kind.", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
     [("system", "Be kind."), *HELLO]),
    *(({"system": system, "data": ["hello", "hi"]}, HELLO) for system in ("", None, 3)),
    *(({"system": "Be kind.", "messages": [{"role": "developer", "content": content}, U, A]},
       [("system", "Be kind."), *HELLO]) for content in ("Be kind.", "")),
    ({"conversations": [U, A]}, HELLO),
    ({"conversations": [{**U, "from": None, "value": None}, {"from": "gpt", "value": "hi", "role": None}]}, HELLO),
    ({"instruction": "And 2?", "input": "", "output": "4", "system": "Add.",
      "history": [["1 + 1?", "2"], ["hello", "hi"]]},
     [("system", "Add."), ("user", "1 + 1?"), ("assistant", "2"), *HELLO, ("user", "And 2?"), ("assistant", "4")]),
    *(({"question": "hello", "answer": "hi", "history": history}, HELLO) for history in ([], None)),
    ({"question": "What?", "answer": "Red", "image": "a.png"},
     [("user", "context"), ("user", "What?"), ("assistant", "Red")]),
    ({"image": "a.png", "messages": [{"role": "user", "content": "First."}, {"role": "user", "content": "Second."}, A]},
     [("user", "context"), ("user", "First.\nSecond."), HELLO[1]]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), FORMS, ids=range(len(FORMS)))
def test_every_form_of_a_conversation_is_read(row: Any, expected: list[tuple[str, str]], tmp_path: Path) -> None:
    assert words(read_one(tmp_path, row)) == expected


BAD = [
    ([1, 2], "broken JSON"),
    ({"text": "hello"}, "no conversation"),
    ({"messages": [U]}, "no answer"),
    ({"messages": [U, {"role": "tool", "content": "x"}]}, "unknown role"),
    ({"messages": [U, {"role": ["user"], "content": "x"}]}, "unknown role"),
    ({"messages": [U, {"role": "assistant", "content": " "}]}, "empty message"),
    ({"messages": [U, {"role": "assistant", "content": 3}]}, "wrong type"),
    ({"messages": ["hello", "hi"]}, "wrong type"),
    ({"question": "hello", "answer": "hi", "history": "1"}, "wrong type"),
    ({"question": "hello", "answer": "hi", "history": [["hello"]]}, "wrong type"),
    ({"question": "hello", "answer": "hi", "history": [["hello", 1]]}, "wrong type"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}, A]}, "wrong type"),
    ({"image": "b.png", "messages": [U, A]}, "no picture"),
    ({"image": "https://x.org/a.png", "messages": [U, A]}, "picture behind a link"),
    ({"image": "data:image/png;base64,AAAA", "messages": [U, A]}, "broken picture"),
    ({"image": "data:image/png;base64,A", "messages": [U, A]}, "broken picture"),
    ({"images": ["a.png", "a.png"], "messages": [U, A]}, "pictures without places"),
]


@pytest.mark.parametrize(("row", "cause"), BAD, ids=range(len(BAD)))
def test_what_is_no_conversation_is_a_bad_document(row: Any, cause: str, tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match=r"row 1 of .*chat\.jsonl") as found:
        read_one(tmp_path, row)
    assert found.value.cause == cause


def test_broken_lines_are_skipped_and_pictures_may_stand_in_the_row(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(saved(tmp_path / "a.png").read_bytes()).decode()
    rows = [json.dumps({"image": url, "messages": [U, A]}), '{"messages": [', "\xff"]
    (tmp_path / "c.jsonl").write_bytes("\n".join(rows).encode("latin-1"))
    source = build_source(ChatData(files=(str(tmp_path / "c.jsonl"),), size=8, holdout=0.0))
    found = list(islice(source, 30))
    assert {document.cause for document in found if isinstance(document, BadDocument)} == {"broken JSON"}
    assert [len(d.images) for d in found if isinstance(d, Document)] == [1] * 10


def test_long_conversations_end_with_an_answer_that_fits(tmp_path: Path) -> None:
    row = {"data": ["a" * 10, "b" * 10] * 4}
    for characters, turns in ((0, 8), (79, 6), (40, 4), (5, 2)):
        assert len(read_one(tmp_path, row, characters=characters).segments) == turns


def test_real_instructions_are_conversations() -> None:
    files = [SHARED / "instruct" / name for name in ("gpteacher_roleplay.json", "gsm8k_test.jsonl")]
    if not files[0].is_file():
        pytest.skip(f"the real data is not here: no file {files[0]}")
    for file in files:
        source = build_source(ChatData(files=(str(file),), size=8))
        found = list(islice(source, 200))
        assert sum(isinstance(document, Document) for document in found) > 190
        assert all([role for role, _ in words(d)] == ["user", "assistant"] for d in found if isinstance(d, Document))


def test_interleaved_documents_keep_their_order_and_say_what_is_drawn(tmp_path: Path) -> None:
    saved(tmp_path / "a.png")
    rows = [
        ({"segments": [{"text": "one"}, {"image": "a.png"}, {"text": "two"}, {"image": "a.png", "target": False}]},
         [(None, "one"), (None, "target"), (None, "two"), (None, "context")]),
        ({"segments": [{"image": "a.png", "role": "human"}, {"image": "a.png", "role": "assistant"}]},
         [("user", "context"), ("assistant", "target")]),
        ({"segments": []}, "no segments"),
        ({"segments": [{"text": "one"}, {"text": "two", "role": "user"}]}, "roles of some segments only"),
        ({"segments": [{"text": ""}]}, "empty text"),
        ({"segments": [{"words": "one"}]}, "wrong type"),
        ({"segments": [{"text": "one", "role": "boss"}]}, "unknown role"),
        ({"segments": [{"image": "a.png", "target": "yes"}]}, "wrong type"),
        ({"segments": [{"image": "b.png"}]}, "no picture"),
    ]  # fmt: skip
    for row, expected in rows:
        (tmp_path / "pages.json").write_text(json.dumps([row]), encoding="utf-8")
        source = Interleaved(InterleavedData(files=(str(tmp_path / "pages.json"),), size=8, holdout=0.0))
        if isinstance(expected, list):
            assert words(source.document(0)) == expected
        else:
            with pytest.raises(BadDocument) as found:
                source.document(0).read()
            assert found.value.cause == expected, row


def test_parquet_has_every_field_of_every_segment_and_of_every_part(tmp_path: Path) -> None:
    """Arrow fills in None where a struct of a list has no such field."""
    saved(tmp_path / "a.png")
    pages = [{"segments": [{"text": "one"}, {"image": "a.png", "target": False}]}]
    parts = [{"type": "text", "text": "what?"}, {"type": "image", "image": "a.png"}]
    other = [{"type": "image_url", "image_url": {"url": "a.png"}}]
    talks = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": parts[:1]}]}
             for content in (parts, other)]  # fmt: skip
    for name, rows in (("pages", pages), ("talks", talks)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    files = {name: (str(tmp_path / f"{name}.parquet"),) for name in ("pages", "talks")}
    source = Interleaved(InterleavedData(files=files["pages"], size=8, holdout=0.0))
    assert words(source.document(0).read()) == [(None, "one"), (None, "context")]
    chats = build_source(ChatData(files=files["talks"], size=8, holdout=0.0))
    found = list(islice(chats, 4))
    assert all(isinstance(document, Document) and len(document.images) == 1 for document in found), found


def test_files_with_a_mark_of_their_byte_order_or_empty_lines_are_read(tmp_path: Path) -> None:
    lines = "\ufeff" + "\n\n".join(json.dumps({"said": f"line {number}"}) for number in range(8)) + "\n\n"
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    config = StreamData(files=(str(tmp_path / "rows.jsonl"),), image_column="", caption="{said}", block=3, holdout=0.0)
    found = list(islice(build_source(config), 8))
    assert {d.segments[0].text for d in found if isinstance(d, Document)} == {f"line {number}" for number in range(8)}
    held_out = next(iter(build_held_out(config)))
    assert isinstance(held_out, Document), "a stream that holds nothing out lends what it trains on"
    few = next(iter(build_held_out(replace(config, holdout=1e-9))))
    assert isinstance(few, Document), "so does one that is too small to hold any row out"
    (tmp_path / "c.json").write_text("\ufeff" + json.dumps([{"messages": [U, A]}], indent=1), encoding="utf-8")
    chats = build_source(ChatData(files=(str(tmp_path / "c.json"),), size=8, holdout=0.0))
    assert isinstance(next(iter(chats)), Document)


def test_class_folders_have_the_names_of_a_file_and_several_prompts(tmp_path: Path) -> None:
    for name in ("n01440764", "n02123045", "n99999999"):
        for number in range(2):
            saved(tmp_path / "train" / name / f"{number}.JPEG")
    lines = "n01440764 tench, Tinca tinca\nn02123045 tabby, tabby cat\n"
    objects = {"n01440764": {"label": "tench", "second_labels": ["Tinca tinca"]}, "n02123045": ["tabby", "tabby cat"]}
    prompts = ("Please generate an image of {}.", "{}")
    for content in (lines, json.dumps(objects)):
        (tmp_path / "names.txt").write_text(content, encoding="utf-8")
        config = FolderData(
            root=str(tmp_path / "train"), size=8, class_names=str(tmp_path / "names.txt"), prompts=prompts, describe=0.0
        )
        documents = list(islice(build_source(config), 200))
        asked = {words(document)[0][1] for document in documents if isinstance(document, Document)}
        assert asked == {prompt.replace("{}", name) for prompt in prompts for name in ("tench", "tabby")}
        assert {document.cause for document in documents if isinstance(document, BadDocument)} == {"no caption"}
    assert FolderPictures(config).prompt(0) == "Please generate an image of tench."
    with pytest.raises(ValueError, match=r"take the place of data\.prompt"):
        FolderData(prompt="a {}", prompts=prompts)


def test_a_torn_shard_is_one_bad_document_and_the_others_are_read(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(6):
                tar.add(saved(tmp_path / f"{number}.png"), arcname=f"{number}.png")
                (tmp_path / "words.txt").write_text(f"{shard} {number}")
                tar.add(tmp_path / "words.txt", arcname=f"{number}.txt")
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2] + b"x" * 700)
    files = tuple(str(tmp_path / f"{shard}.tar") for shard in range(2))
    config = StreamData(files=files, image_column="png", caption="{txt}", size=8, block=4, holdout=0.0, describe=0.0)
    source = build_source(config, seed=1)
    found, states = [], []
    for document in islice(source, 40):
        found.append(words(document) if isinstance(document, Document) else document.cause)
        states.append(json.loads(json.dumps(source.state_dict())))
    assert {f"0 {number}" for number in range(6)} <= {entry[0][1] for entry in found if isinstance(entry, list)}
    assert 2 <= found.count("broken shard") <= 8, "once an epoch"
    for at in range(0, 20, 7):
        resumed = build_source(config, seed=1)
        resumed.load_state_dict(states[at])
        again = [words(d) if isinstance(d, Document) else d.cause for d in islice(resumed, 12)]
        assert again == found[at + 1 : at + 13]


def test_a_broken_line_of_a_stream_costs_no_other(tmp_path: Path) -> None:
    lines = [json.dumps({"said": f"line {number}"}).encode() for number in range(50)]
    for number, broken in ((7, b'{"said": '), (20, b"[1, 2]"), (33, b'{"said": "\xff line"}'), (40, b"[" * 100_000)):
        lines[number] = broken
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    config = StreamData(files=(str(tmp_path / "rows.jsonl"),), image_column="", caption="{said}", block=7, holdout=0.0)
    found = list(islice(build_source(config), 50))
    said = {document.segments[0].text for document in found if isinstance(document, Document)}
    assert said == {*(f"line {number}" for number in range(50) if number not in (7, 20, 33, 40)), "\ufffd line"}
    assert [document.cause for document in found if isinstance(document, BadDocument)] == ["broken JSON"] * 3


def test_a_broken_member_of_a_tar_costs_no_other_row(tmp_path: Path) -> None:
    def add(name: str, content: bytes) -> None:
        (tmp_path / "member").write_bytes(content)
        tar.add(tmp_path / "member", arcname=name)

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(20):
            picture = saved(tmp_path / ("a.png" if number % 2 else "a.jpg")).read_bytes()
            add(f"train/{number:03d}.{'png' if number % 2 else 'JPG'}", b"torn" if number == 5 else picture)
            text = json.dumps({"said": f"row {number}"}).encode()
            add(f"train/{number:03d}.json", text[:-3] if number == 9 else text)
    files = (str(tmp_path / "0.tar"),)
    config = StreamData(
        files=files, image_column="jpg;png", caption="{json.said}", size=8, block=6, holdout=0.0, describe=0.0
    )
    found = list(islice(build_source(config), 20))
    said = {words(document)[0][1] for document in found if isinstance(document, Document)}
    assert said == {f"row {number}" for number in range(20) if number not in (5, 9)}
    causes = sorted(document.cause for document in found if isinstance(document, BadDocument))
    assert causes == ["broken JSON", "broken picture"]


def test_pictures_of_a_stream_are_mirrored_and_asked_for_in_several_ways(tmp_path: Path) -> None:
    half = PILImage.new("RGB", (8, 8), "black")
    half.paste("white", (0, 0, 4, 8))
    half.save(tmp_path / "half.png")
    row = {"image": str(tmp_path / "half.png"), "caption": "half"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(30)), encoding="utf-8")
    config = StreamData(files=(str(tmp_path / "rows.jsonl"),), size=8, holdout=0.0, describe=0.0)
    prompts = ("Draw {}.", "{}, please")
    plain, varied = (
        [(words(document)[0][1], bool(document.images[0].pixels[0, 0, 0])) for document in usable(source, 30)]
        for source in (build_source(config), build_source(replace(config, prompts=prompts, flip=True)))
    )
    assert set(plain) == {("half", True)}
    assert set(varied) == {(prompt.replace("{}", "half"), left) for prompt in prompts for left in (False, True)}
    assert 5 <= sum(left for _, left in varied) <= 25
    for wrong in ({"prompt": "a"}, {"prompt": "a {}", "prompts": prompts}):
        with pytest.raises(ValueError, match=r"data\.prompt"):
            StreamData(**wrong)  # type: ignore[arg-type]
    for useless in ({"chat": True, "flip": True}, {"image_column": "", "prompts": prompts}):
        with pytest.raises(ValueError, match="leave them out"):
            StreamData(**useless)  # type: ignore[arg-type]


WRONG = [
    (
        {"caption": "{name}[, {tonne} tone]"},
        r"data\.caption names the column 'tonne', .* has .*; did you mean 'tone'\?",
    ),
    ({"caption": "{caption}"}, r"data\.caption names the column 'caption', but the data has image, name"),
    ({"caption": "{more.colour}"}, r"names the column 'colour', but the data has color; did you mean 'color'\?"),
    ({"caption": "{name.en}"}, r"data\.caption names the column 'name\.en'"),
    ({"image_column": "imag;jpg"}, r"data\.image_column names the column 'imag', .*did you mean 'image'\?"),
    ({"chat": True}, r"data\.chat needs the column messages, .*but the data has image, name"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=range(len(WRONG)))
def test_a_column_that_a_stream_does_not_have_is_refused(options: Any, message: str, tmp_path: Path) -> None:
    cell = {"bytes": saved(tmp_path / "a.png").read_bytes(), "path": "a.png"}
    row = {"image": cell, "name": "fox", "tone": None, "more": {"color": "red"}, "messages ": [U, A]}
    pq.write_table(pa.Table.from_pylist([row] * 4), tmp_path / "rows.parquet")
    config = StreamData(files=(str(tmp_path / "rows.parquet"),), caption="{name}[, {tone} tone]", size=8, holdout=0.0)
    whole = replace(config, image_column="jpg;image", caption="{name}[, {more.color}][, {tone}]", describe=0.0)
    assert words(next(usable(build_source(whole), 1)))[0] == ("user", "fox, red")
    with pytest.raises(ValueError, match=message):
        build_source(replace(config, **options))


def test_a_row_without_a_needed_column_says_which_there_are(tmp_path: Path) -> None:
    rows = [
        {"name": "fox", "tone": "dark", "more": None},
        {"name": "owl"},
        {"name": ""},
        {"nome": "cat", "tone": "dark"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = StreamData(files=(str(tmp_path / "rows.jsonl"),), image_column="", caption="{name}[, {tone}]", holdout=0.0)

    def told(config: StreamData) -> tuple[list[str], list[tuple[str, str]]]:
        found = list(islice(build_source(config), 4))
        bad = [(document.cause, str(document)) for document in found if isinstance(document, BadDocument)]
        return sorted(words(one)[0][1] for one in found if isinstance(one, Document)), sorted(bad)

    good, ((cause, _), (missing, said)) = told(config)
    assert good == ["fox, dark", "owl"], "what is in [ ] may be left out"
    assert (cause, missing) == ("no caption", "no such column")
    assert re.search(r"row 3 of .*'name', but the data has nome, tone; did you mean 'nome'\?", said)
    good, bad = told(replace(config, caption="{name}{more.kind}"))
    assert not good
    causes = [cause for cause, _ in bad]
    assert causes == ["no caption", *["no such column"] * 3], "an object that is null is an empty one"
    assert told(replace(config, image_column="jpg;png"))[1][0][0] == "no such column"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        (tmp_path / "words").write_text("a fox")
        tar.add(saved(tmp_path / "a.png"), arcname="1.png")
        tar.add(tmp_path / "words", arcname="1.txt")
    tars = StreamData(files=(str(tmp_path / "0.tar"),), image_column="png", caption="{text}", size=8, holdout=0.0)
    assert re.search(r"has __key__, png, txt; did you mean 'txt'\?", told(tars)[1][0][1])
    assert told(replace(tars, caption="{txt}"))[1] == []


def test_data_sets_that_cannot_be_opened_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    for config, message in (
        (StreamData(files=(str(tmp_path / "b.tar"),)), "no such file"),
        (StreamData(files=(str(tmp_path / "a.bin"),)), r"must all be \.tar"),
        (StreamData(path=str(tmp_path / "nowhere")), "cannot be opened"),
    ):
        with pytest.raises(ValueError, match=message):
            build_source(config)
    for empty in (ChatData(), InterleavedData(), StreamData()):
        with pytest.raises(ValueError, match=r"data\.(files|path) is empty; give"):
            check_named(empty)


def test_a_picture_is_cropped_stretched_or_takes_the_nearest_shape(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    wide = PILImage.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    wide.save(path)
    buckets = ((16, 16), (8, 24), (24, 8), (4, 12))
    shapes: dict[str, Any] = {"crop": (3, 16, 16), "resize": (3, 16, 16), "bucket": (3, 8, 24)}
    configs = [FolderData(size=16, shape=s, buckets=buckets if s == "bucket" else ()) for s in shapes]  # type: ignore[arg-type]
    found = {config.shape: read_as(config, path, name="") for config in configs}
    assert {shape: tuple(pixels.shape) for shape, pixels in found.items()} == shapes
    reds = {shape: float((pixels[0] > 128).float().mean()) for shape, pixels in found.items()}
    assert reds["crop"] < 0.1
    assert [reds["resize"], reds["bucket"]] == pytest.approx([2 / 3, 2 / 3], abs=0.05)
    assert [nearest_size(*size, buckets) for size in ((100, 100), (90, 60), (20, 70))] == [(16, 16), (16, 16), (8, 24)]
    assert nearest_size(8, 8, ((16, 16), (8, 8))) == (8, 8), "its own size, not the largest of that ratio"
    with pytest.raises(ValueError, match=r"set data\.shape to bucket"):
        FolderData(buckets=((8, 8),))


def test_pictures_of_every_shape_are_trained_on_in_the_models_sizes(tmp_path: Path) -> None:
    for number, (width, height) in enumerate(((20, 20), (40, 18), (16, 30), (64, 32))):
        saved(tmp_path / "pictures" / "cat" / f"{number}.png", width, height)
    config = tiny.run_config(tmp_path / "run")
    data = sized(FolderData(root=str(tmp_path / "pictures"), shape="bucket", draw=1.0, describe=0.0), config.model)
    config = tiny.run_config(tmp_path / "run", data=data)
    check_sizes(config)
    loader = build_loader(config, build_source(data), tiny.tokenizer())
    trainer = tiny.trainer(config, stream=build_source(data))
    with loader, trainer.parts.loader:
        sizes = {tuple(slots.pixels.shape[-2:]) for batch in islice(loader, 3) for slots in batch.images}
        assert sizes == set(tiny.SIZES)
        assert torch.isfinite(torch.tensor(trainer.train_step([next(trainer.parts.loader)])["image_loss"]))
    assert len(list(usable(build_source(data), 8))) == 8


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"messages": ' + "[" * 200_000, "broken JSON"),
        ('{"messages": ' + "9" * 5_000 + "}", "broken JSON"),
        (json.dumps({"image": "data:image/png;base64,é", "messages": [U, A]}), "broken picture"),
    ],
    ids=["nested", "digits", "url"],
)
def test_lines_that_break_their_readers_are_bad_documents(line: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join([json.dumps({"messages": [U, A]}), line]) + "\n", encoding="utf-8")
    source = build_source(ChatData(files=(str(tmp_path / "c.jsonl"),), size=8, holdout=0.0))
    found = list(islice(source, 10))
    bad = [document for document in found if isinstance(document, BadDocument)]
    assert 0 < len(bad) < 10
    assert {document.cause for document in bad} == {cause}


def test_half_a_surrogate_pair_is_a_bad_document_and_no_reason_to_stop(tmp_path: Path) -> None:
    cut = {"role": "assistant", "content": "so nice \ud83d"}  # as cut JSON has it
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"messages": [U, one]}) for one in (A, cut)))
    config = ChatData(files=(str(tmp_path / "c.jsonl"),), holdout=0.0)
    documents = list(enumerate(islice(build_source(config), 10)))
    good = [(number, document) for number, document in documents if isinstance(document, Document)]
    plans, bad = plan_all(tiny.sequencer(), good, length=100, seed=0)
    assert len(plans) + len(bad) == 10
    assert {one.cause for one in bad.values()} == {"cannot be laid out"}
    assert "half of a surrogate pair" in str(next(iter(bad.values())))
    run = tiny.run_config(tmp_path / "run", data=config)
    assert train_tokenizer(replace(run, tokenizer=TokenizerConfig(vocabulary=300))).encode("nice")
