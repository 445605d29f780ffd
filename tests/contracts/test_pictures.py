"""Pictures and captions from the forms that people keep them in, and what is said where they are broken."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from PIL import features

from monoformer.config.data import FolderData, ParquetData, TextData
from monoformer.data.build import build_source
from monoformer.data.captions import CaptionTemplate, check_column, folder_captions, read_class_names, texts
from monoformer.data.images import SUFFIXES, FolderPictures, ParquetPictures, no_pictures, picture_files
from monoformer.data.pictures import PictureCache, find_size, picture_later, read_picture
from monoformer.data.skipped import BadDocument
from monoformer.data.text import TextFiles, cut
from monoformer.document import Document


def save(path: Path, colour: tuple[int, ...] = (250, 0, 0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGBA" if len(colour) == 4 else "RGB", (20, 30), colour).save(path)
    return path


def folder(root: Path, **options: object) -> FolderPictures:
    return FolderPictures(FolderData(root=str(root), size=16, **options))  # type: ignore[arg-type]


def test_captions_come_from_metadata_then_text_files_then_class_folders(tmp_path: Path) -> None:
    for name in ("listed.png", "beside.png", "deep/red_fox/class.PNG", "more/one.jpg", "._hidden.png"):
        save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text('file_name,text\nlisted.png,"a red, flat\nthing"\n', encoding="utf-8-sig")
    (tmp_path / "beside.txt").write_text(" a {curly} caption\n")
    (tmp_path / "beside.png").with_suffix(".csv").write_text("no metadata")
    (tmp_path / "more" / "metadata.jsonl").write_text(json.dumps({"file_name": "one.jpg", "text": ["uno", "one"]}))
    pictures = folder(tmp_path, prompt="Draw {}!")
    captions = {path.name: pictures.captions(row) for row, path in enumerate(pictures.files)}
    assert captions == {
        "listed.png": ("a red, flat\nthing",),
        "beside.png": ("a {curly} caption",),
        "class.PNG": ("red fox",),
        "one.jpg": ("uno", "one"),
    }
    assert pictures.prompt([path.name for path in pictures.files].index("beside.png")) == "Draw a {curly} caption!"


def test_links_to_folders_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    for name in ("data/b/b.png", "data/b/B.png", "data/a.png", "data/B-c/1.png", "pool/fox/x/1.png", "far/2.png"):
        save(tmp_path / name)
    plain = [path.relative_to(tmp_path / "data").as_posix() for path in picture_files(tmp_path / "data")]
    assert plain == sorted(plain) == ["B-c/1.png", "a.png", "b/B.png", "b/b.png"]
    (tmp_path / "data" / "owl").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "fox").symlink_to(Path("..") / "pool" / "fox")
    (tmp_path / "data" / "aaa").symlink_to("b")  # lies there already
    (tmp_path / "pool" / "fox" / "again").symlink_to(tmp_path / "pool")
    (tmp_path / "far" / "up").symlink_to("..")
    (tmp_path / "data" / "gone").symlink_to("nowhere")
    (tmp_path / "data" / "self.png").symlink_to("self.png")
    (tmp_path / "far" / "metadata.csv").write_text("file_name,text\n2.png,an owl\n")
    pictures = folder(tmp_path / "data")
    names = [path.relative_to(tmp_path / "data").as_posix() for path in pictures.files]
    assert names == sorted([*plain, "fox/x/1.png", "owl/2.png"])
    assert [pictures.caption(names.index(name)) for name in ("fox/x/1.png", "owl/2.png")] == ["x", "an owl"]
    (tmp_path / "far" / "book.txt").write_text("Once.")
    assert TextFiles(TextData(files=(str(tmp_path / "data"),), holdout=0.0)).texts == ["Once."]


def test_pictures_of_less_common_kinds_are_read_and_other_files_are_counted(tmp_path: Path) -> None:
    picture = PILImage.new("RGB", (20, 30), "red")
    (tmp_path / "metadata.csv").write_text("file_name,text\npicture.png,red\n")
    for end in SUFFIXES:
        if end != ".avif" or features.check("avif"):
            picture.save(tmp_path / f"picture{end}")
    pictures = folder(tmp_path)
    assert {".jfif", ".ppm"} < {path.suffix for path in pictures.files}
    assert all(pictures.picture(row).shape == (3, 16, 16) for row in range(len(pictures.files)))
    for name in ("picture.txt", "notes.txt", "a.heic", "b.heic", ".hidden", "README"):
        (tmp_path / name).write_text("words")
    assert no_pictures(tmp_path) == {".heic": 2, ".txt": 1, "README": 1}


def test_small_folders_are_their_own_test_and_larger_ones_are_split_for_good(tmp_path: Path) -> None:
    for number in range(19):
        save(tmp_path / "cat" / f"{number}.png")
    assert folder(tmp_path).train_rows == folder(tmp_path).test_rows
    for number in range(19, 200):
        save(tmp_path / "cat" / f"{number}.png")
    pictures = folder(tmp_path)
    held = {pictures.files[row].name for row in pictures.test_rows}
    assert 1 <= len(held) <= 25
    assert not set(pictures.test_rows) & set(pictures.train_rows)
    assert len(pictures.test_rows) + len(pictures.train_rows) == 200
    for number in range(200, 260):
        save(tmp_path / "cat" / f"{number}.png")
    grown = folder(tmp_path)
    assert {grown.files[row].name for row in grown.train_rows} >= {f"{n}.png" for n in range(200)} - held
    assert {grown.files[row].name for row in grown.test_rows} >= held


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds no pictures"),
        (lambda root: save(root / "alone.png"), "has no caption"),
        (lambda root: (save(root / "a.png"), (root / "metadata.csv").write_text("file,text\na.png,x\n")), "file_name"),
        (lambda root: (save(root / "a.png"), (root / "metadata.jsonl").write_text("{\n")), "line 1 is not JSON"),
        (lambda root: (save(root / "a.png"), (root / "a.txt").write_bytes(b"\xff\xfe\x00")), "not UTF-8"),
        (
            lambda root: (save(root / "a.png"), (root / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')),
            "has no column beside file_name; add the captions as the column text",
        ),
        (
            lambda root: (save(root / "a.png"), (root / "metadata.csv").write_text("file_name,a,b\na.png,x,y\n")),
            "names the column 'text', but the data has a, b",
        ),
        (
            lambda root: (save(root / "a.png"), (root / "metadata.csv").write_bytes("a,b\nx,y".encode("utf-16"))),
            "UTF-8",
        ),
    ],
)
def test_unusable_folders_say_what_to_do(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as failure:
        folder(tmp_path)
    assert str(tmp_path) in str(failure.value)


def test_missing_folders_and_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root is empty"):
        FolderPictures(FolderData())
    with pytest.raises(ValueError, match="not a folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such file"):
        ParquetPictures(ParquetData(files=(str(tmp_path / "nowhere.parquet"),)))
    (tmp_path / "book.txt").write_text("Once.")
    with pytest.raises(ValueError, match=re.escape(f"did you mean {str(tmp_path / 'book.txt')!r}?")):
        TextFiles(TextData(files=(str(tmp_path / "bok.txt"),)))
    with pytest.raises(ValueError, match="check the path"):  # the folder that both share makes no names alike
        TextFiles(TextData(files=(str(tmp_path / "letters"),)))


def test_broken_pictures_and_decompression_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save(tmp_path / "cat" / "a.png").read_bytes()
    for broken in (whole[: len(whole) // 2], b"GIF89a", b"", b"text"):
        (tmp_path / "cat" / "a.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.png cannot be read"):
            folder(tmp_path).document(0).read()
    (tmp_path / "cat" / "a.png").write_bytes(whole)
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png is too large"):
        folder(tmp_path).document(0).read()


def test_what_lacks_a_caption_or_a_picture_is_one_bad_document_not_a_bad_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red\nelsewhere/c.png,blue\n/d.png,x\n")
    pictures, causes = folder(tmp_path), {}
    for row, path in enumerate(pictures.files):
        try:
            pictures.captions(row), pictures.picture(row)
        except BadDocument as bad:
            causes[path.name] = (bad.cause, path.name in str(bad))
    assert causes == {"b.png": ("no caption", True), "c.png": ("no picture", True), "d.png": ("no picture", True)}
    stream = list(islice(build_source(FolderData(root=str(tmp_path), size=16)), 40))
    assert {document.cause for document in stream if isinstance(document, BadDocument)} == {"no caption", "no picture"}
    assert 5 <= sum(isinstance(document, Document) for document in stream) <= 15, "one in four"


def causes(pictures: FolderPictures) -> dict[str, str]:
    """What is wrong with the captions of a folder, by the name of the picture or row."""
    found = {}
    for row, path in enumerate(pictures.files):
        try:
            pictures.captions(row)
        except BadDocument as bad:
            found[path.name] = bad.cause
    return found


def test_one_broken_caption_costs_its_own_picture(tmp_path: Path) -> None:
    for number in range(40):
        save(tmp_path / f"{number:02}.png")
        (tmp_path / f"{number:02}.txt").write_bytes(b"caf\xe9" if number in (7, 8) else b"a cup")
    pictures = folder(tmp_path)
    assert causes(pictures) == {"07.png": "not UTF-8", "08.png": "not UTF-8"}
    assert {7, 8} <= set(pictures.train_rows), "where they are counted"
    stream = list(islice(build_source(FolderData(root=str(tmp_path), size=16)), len(pictures.train_rows)))
    bad = [document for document in stream if isinstance(document, BadDocument)]
    assert sorted(re.findall(r"\d\d\.txt", " ".join(map(str, bad)))) == ["07.txt", "08.txt"]
    for number in (7, 8):
        (tmp_path / f"{number:02}.txt").write_text("a cup")
    assert folder(tmp_path).test_rows == pictures.test_rows


def test_one_broken_row_of_metadata_costs_no_other(tmp_path: Path) -> None:
    rows: list[dict[str, str]] = [{"file_name": f"{number}.png", "text": f"number {number}"} for number in range(6)]
    for row in rows:
        save(tmp_path / row["file_name"])
    lines = [json.dumps(row).encode() for row in rows]
    lines[1] = lines[1][:-9]
    lines[2] = b'{"text": "number 2"}'
    lines[3] = b'{"file_name": "3.png", "source": "web"}'
    lines[4] = b'{"file_name": "4.png", "text": "caf\xe9"}'
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    assert causes(folder(tmp_path)) == {
        **dict.fromkeys(("1.png", "2.png", "3.png", "4.png"), "no caption"),
        **{"metadata.jsonl line 2": "broken JSON", "metadata.jsonl line 3": "no file_name"},
        "metadata.jsonl line 5": "broken JSON",
    }
    cells = b'file_name,text\n0.png,zero\n1.png,caf\xe9\n,two\n3.png\n4.png,"' + b"4" * 140_000 + b'"\n5.png,five\n'
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes(cells)
    pictures = folder(tmp_path)
    assert causes(pictures) == {
        **dict.fromkeys(("1.png", "2.png", "3.png", "4.png"), "no caption"),
        **{"metadata.csv line 3": "not UTF-8", "metadata.csv line 4": "no file_name"},
        "metadata.csv line 6": "broken CSV",
    }
    assert [pictures.captions(row) for row in (0, 5)] == [("zero",), ("five",)]


def test_metadata_names_pictures_in_any_way_and_as_often_as_it_likes(tmp_path: Path) -> None:
    """By absolute paths, by `..`, in several rows: always the picture that is there, once, with all of its captions."""
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "meta").mkdir()
    rows = [
        f"{tmp_path / 'images' / '0.png'},a fox",
        "../images/1.png,an owl",
        "../images/1.png,a bird",
        "../images/2.png,",
    ]
    cut = "../images/3.png,a fox, sitting in the snow"
    (tmp_path / "meta" / "metadata.csv").write_text("\n".join(["file_name,text", *rows, cut]) + "\n")
    found = folder_captions(tmp_path, picture_files(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [f"images/{number}.png" for number in range(4)]
    fox, owl, none, broken = found.values()
    assert (fox, owl) == (("a fox",), ("an owl", "a bird"))
    assert none == (), "an empty cell is no caption, and the folder's name is none either"
    assert isinstance(broken, BadDocument)
    assert broken.cause == "broken CSV"
    assert "quotes" in str(broken)


def test_pictures_in_hidden_folders_are_none(tmp_path: Path) -> None:
    for place in ("cats/a.png", "cats/.ipynb_checkpoints/a-checkpoint.png", ".cache/b.png"):
        save(tmp_path / place)
    assert picture_files(tmp_path) == [tmp_path / "cats" / "a.png"]


def test_other_lines_ends_of_unicode_end_no_row(tmp_path: Path) -> None:
    said = "one\u2028two\x85three\x0bfour\x0cfive"
    for name in ("a.png", "b.png", "c/c.png"):
        save(tmp_path / name)
    (tmp_path / "metadata.csv").write_bytes(f'file_name,text\r\na.png,"{said}"\r\n'.encode())
    (tmp_path / "c" / "metadata.jsonl").write_bytes(
        (json.dumps({"file_name": "../b.png", "text": "b"}) + "\r\n").encode()
        + json.dumps(
            {"file_name": "c.png", "text": said.replace("\x0b", "").replace("\x0c", "")}, ensure_ascii=False
        ).encode()
    )
    pictures = folder(tmp_path)
    assert [path.name for path in pictures.files] == ["a.png", "b.png", "c.png"]
    assert pictures.captions(0) == (said,)
    assert pictures.captions(2) == (said.replace("\x0b", "").replace("\x0c", ""),)
    (tmp_path / "names.txt").write_bytes("c sea\x85shore, beach\r\nd dune\r\n".encode())
    assert read_class_names(tmp_path / "names.txt") == {"c": "sea\x85shore", "d": "dune"}


def test_pictures_are_upright_on_white_cropped_and_smooth(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save(path, (255, 0, 0, 0))
    assert read_picture(path, sizes=((16, 16),), name="").float().mean() == 255, "transparent is white"
    wide = PILImage.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    wide.save(path)
    assert read_picture(path, sizes=((20, 20),), name="")[:, 10, 10].tolist() == [0, 0, 255]
    assert read_picture(path, sizes=((20, 20),), name="")[2].float().mean() == 255, (
        "the centre of a wide picture is its blue square"
    )
    tags = PILImage.Exif()
    tags[0x0112] = 6  # the camera was turned: what is stored left is up
    turned = PILImage.new("RGB", (32, 32), "white")
    turned.paste("black", (0, 0, 16, 32))
    turned.save(tmp_path / "turned.jpg", exif=tags, quality=95)
    pixels = read_picture(tmp_path / "turned.jpg", sizes=((32, 32),), name="").float()
    assert pixels[:, :12].mean() < 10
    assert pixels[:, 20:].mean() > 245
    checks = PILImage.new("L", (64, 64))
    checks.putdata([255 * ((x + y) % 2) for y in range(64) for x in range(64)])
    checks.convert("P").save(path)
    assert abs(read_picture(path, sizes=((16, 16),), name="").float()[:, 4:12, 4:12].mean() - 127.5) < 3, (
        "antialiased, palette too"
    )
    PILImage.new("I;16", (20, 20), 32768).save(path)
    assert read_picture(path, sizes=((16, 16),), name="")[0, 0, 0] == 128, "16-bit grey is scaled, not clipped"


@pytest.mark.parametrize("form", ["jpg", "png", "tif", "webp", "gif", "bmp"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_the_header_tells_the_size_that_a_picture_gets(form: str, turned: int, tmp_path: Path) -> None:
    sizes, path, tags = ((64, 64), (48, 80), (80, 48), (16, 16)), tmp_path / f"a.{form}", PILImage.Exif()
    tags[0x0112] = turned
    for width, height in ((300, 200), (200, 301), (16, 16), (801, 640), (70, 80)):
        options = {} if form in ("gif", "bmp") else {"exif": tags}
        PILImage.new("RGB", (width, height), "red").save(path, **options)
        pixels = read_picture(path, sizes=sizes, name="")
        assert find_size(path, sizes=sizes, name="") == tuple(pixels.shape[1:])
        assert torch.equal(
            pixels, picture_later(FolderData(shape="bucket", buckets=sizes), path, name="").read().pixels
        )


def test_the_cache_is_bounded_and_reads_once_what_it_holds(tmp_path: Path) -> None:
    path, read = save(tmp_path / "a.png"), []
    cache = PictureCache(FolderData(size=16), lambda row: read.append(row) or (path, ""), limit=2 * 768)
    for row in (0, 1, 2, 0, 1, 2):
        assert cache.picture(row).shape == (3, 16, 16)
    assert read == [0, 1, 2, 2]


def test_templates_drop_empty_parts_and_take_lists_in_turn() -> None:
    template = CaptionTemplate("{name}[, {tone} skin tone][ ({a} {b})]")
    assert template.columns == ("name", "tone", "a", "b")
    row = {"name": ("hand", "fist"), "tone": (), "a": ("1",), "b": ()}
    assert template.fill(row) == ("hand", "fist")
    assert template.fill({**row, "tone": ("dark",), "b": ("2",)}) == (
        "hand, dark skin tone (1 2)",
        "fist, dark skin tone (1 2)",
    )
    assert template.fill({**row, "name": ()}) == (), "what stands outside of [ ] is needed"
    values = (None, "", " None ", float("nan"), 3, ["x", None, ""])
    assert [texts(value) for value in values] == [(), (), (), (), ("3",), ("x",)]
    for wrong in ("{name}[, {tone}", "{name", "no column", "[{a}[{b}]]", "{a}[b]"):
        with pytest.raises(ValueError, match=r"data\.caption"):
            CaptionTemplate(wrong)
    with pytest.raises(ValueError, match=r"has name, tone; did you mean 'name'\?"):
        check_column("nam", columns=("name", "tone"), setting="data.caption")
    with pytest.raises(ValueError, match=r"did you mean 'skin_tones'\?"):  # 8 of 14 characters
        check_column("tone", columns=("name", "skin_tones"), setting="data.edit_column")


def test_text_is_cut_at_paragraphs_then_sentences_then_words() -> None:
    text = "One two. Three four.\n \n\nFive six.\n\nSeven eight nine. Ten eleven twelve thirteen " + "x" * 50 + " end"
    pieces = list(cut(text, characters=32))
    assert pieces[:4] == [
        "One two. Three four.\n\nFive six.",
        "Seven eight nine.",
        "Ten eleven twelve thirteen",
        "x" * 32,
    ]
    assert pieces[4:] == ["x" * 18 + " end"]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert list(cut(" \n\n \n", characters=3)) == []
    assert list(cut("One. Two\n\nTwo", characters=8)) == ["One. Two", "Two"], "a paragraph may fill a document"


def test_a_text_that_is_no_utf8_is_one_bad_document(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_bytes(b"caf\xe9" if number == 3 else f"Book {number}.".encode())
    config = TextData(files=(str(tmp_path),), holdout=0.2)
    stream = list(islice(build_source(config), 30))
    bad = [document for document in stream if isinstance(document, BadDocument)]
    assert {document.cause for document in bad} == {"not UTF-8"}
    assert all("3.txt" in str(document) for document in bad)
    train, test = (TextFiles(config, split=split) for split in ("train", "test"))
    assert len(train.texts) + len(test.texts) == 10
    assert len(bad) >= 30 // train.length, "once an epoch"
    (tmp_path / "3.txt").write_text(" ")
    assert TextFiles(config, split="test").texts == test.texts
    (tmp_path / "3.txt").write_bytes(b"caf\xe9")
    for split, holdout in (("train", 0.0), ("test", 0.5)):
        with pytest.raises(ValueError, match=r"3\.txt is not UTF-8"):
            TextFiles(TextData(files=(str(tmp_path / "3.txt"),), holdout=holdout), split=split)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split 'train'"):
        TextFiles(TextData(files=(str(tmp_path / "3.txt"), str(tmp_path / "4.txt"))))


def test_equal_documents_are_in_the_same_split(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n\n".join(f"Paragraph {n:03}." for n in range(200)))
    config = TextData(files=(str(tmp_path),), characters=20, holdout=0.3)
    train, test = TextFiles(config, split="train").texts, TextFiles(config, split="test").texts
    assert not set(train) & set(test)
    assert len(train) + len(test) == 400
    assert 80 <= len(test) <= 160
    with pytest.raises(ValueError, match="split 'test'"):
        TextFiles(TextData(files=(str(tmp_path),), holdout=0.0), split="test")
