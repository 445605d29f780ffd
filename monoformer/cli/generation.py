"""generate, write, caption, edit, chat: a model folder put to use."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image as PILImage

from monoformer.arguments import open_picture
from monoformer.cli.bulk import Bulk, Form, draw_all, own_device, ranks
from monoformer.cli.options import Use, check_folder, check_picture_file, parse, save_pictures
from monoformer.document import Document, Segment, Text
from monoformer.evaluate.prompts import read_lines
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.generate.editing import check_strength
from monoformer.generate.session import Event, picture_size
from monoformer.pipeline import Pipeline
from monoformer.pretrained import find_folder, read_folder_config

ModelFolder = Annotated[str, tyro.conf.Positional]
Prompts = Annotated[tuple[str, ...], tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class _Generate(Use):
    """Draw pictures from prompts."""

    model: ModelFolder
    """Model folder or hub name."""
    prompt: Prompts
    """What to draw, one picture each."""
    prompts: Path | None = None
    """Instead, a file with one prompt a line (or JSON lines with a `prompt`): `num` pictures in all, into the folder
    `out` with all of them as pictures.npz. Resumed where it was killed; `torchrun` shares it among processes."""
    out: Path = Path("picture.png")
    """Where the picture goes; several become NAME-0.png, NAME-1.png, ... A folder with --prompts."""
    form: Form = "png"
    """With --prompts: a file a picture, or webdataset tars with the prompts."""
    chunk: int = 64
    """With --prompts: pictures that are drawn together."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; one that the model was trained to draw."""
    num: int = 0
    """Pictures of each prompt (0: one); with --prompts pictures in all (0: one a line)."""
    picture: Path | None = None
    """A picture file to start from."""
    strength: float = 1.0
    """The time from which it is redrawn: near 0 it hardly changes, at 1 all that the mask lets change."""
    mask: Path | None = None
    """A picture file, white (or transparent) where it is drawn anew; the rest stays."""
    gallery: bool = False
    """Also write one picture with all of them and their prompts."""


def generate(arguments: list[str]) -> None:
    """Draw pictures: monoformer generate MODEL "a large red circle on a white background" --out circle.png"""
    options = parse(_Generate, arguments, command="generate")
    settings = options.sampling.given(want="image")
    if options.num < 0:
        raise ValueError(f"--num must be 1 or more, but is {options.num}")
    if options.prompts is not None:
        return _generate_many(options, options.prompts, settings)
    if not options.prompt:
        raise ValueError("give at least one prompt, or a file of them: --prompts FILE")
    if options.form != "png" or options.chunk != 64:
        raise ValueError("--form and --chunk have no effect without --prompts FILE; leave them out")
    check_picture_file(options.out)
    picture, mask = _opened(options.picture), _opened(options.mask)
    if picture is not None:
        check_strength(options.strength, has_mask=mask is not None)
    elif mask is not None or options.strength != 1:
        raise ValueError("--strength and --mask have no effect without a picture to start from; give --picture FILE")
    check_size(options.model, options.size)
    pipeline = options.open(options.model)
    prompts = [prompt for prompt in options.prompt for _ in range(max(1, options.num))]
    pictures = pipeline.generate_images(
        prompts, size=options.size, picture=picture, strength=options.strength, mask=mask, **settings
    )
    for path in save_pictures(pictures, options.out):
        print(path)
    if options.gallery:
        cells = tuple(Cell((picture,), prompt) for picture, prompt in zip(pictures, prompts, strict=True))
        path = options.out.with_stem(f"{options.out.stem}-gallery")
        draw_gallery([Section("", cells)]).save(path)
        print(path)
    return None


def _generate_many(options: _Generate, file: Path, settings: dict[str, Any]) -> None:
    """The pictures of a file's prompts."""
    if options.prompt or options.picture or options.mask or options.gallery or options.strength != 1:
        raise ValueError("--prompts FILE draws from its lines alone; leave prompts, pictures, masks and gallery out")
    if options.chunk < 1 or options.out.suffix:
        raise ValueError(f"--prompts needs a folder as --out and --chunk 1 or more, not {options.out}, {options.chunk}")
    check_folder(options.out)
    check_size(options.model, options.size)
    rank, world = ranks()
    lines = read_lines(file)
    bulk = Bulk(
        prompts=lines,
        count=options.num or len(lines),
        folder=options.out,
        chunk=options.chunk,
        form=options.form,
        size=options.size,
    )
    slots = 3 * min(options.chunk, bulk.count)  # every picture's contexts at once
    pipeline = options.open(options.model, device=own_device(options.device), slots=slots)
    whole = draw_all(pipeline, bulk, settings, rank=rank, world=world)
    print(f"rank {rank} of {world} is done; others are not" if whole is None else whole)
    failed = bulk.count - sum(len(bulk.drawn(chunk)) for chunk in bulk.chunks(0, 1))
    if failed and whole is not None:
        print(f"{failed} of {bulk.count} pictures cannot be drawn: {bulk.folder}/*.failed say why", file=sys.stderr)
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class _Write(Use):
    """Continue texts."""

    model: ModelFolder
    """Model folder or hub name."""
    prompts: Prompts
    """Beginnings of texts."""
    choices: tuple[str, ...] = ()
    """Continuations of which the likeliest is taken."""
    compile: bool = False
    """Compile the decoding first: up to minutes, and then faster; worth it for long texts."""


def write(arguments: list[str]) -> None:
    """Continue texts: monoformer write MODEL "Once upon a time" "The red circle" (several, if you like)"""
    options = parse(_Write, arguments, command="write")
    settings = options.sampling.given(want="text", chooses=bool(options.choices))
    pipeline = _writing(options)
    prompts = list(options.prompts) or [""]
    texts = pipeline.generate_text(prompts, choices=options.choices, **settings)
    for prompt, text in zip(prompts, texts, strict=True):
        print(prompt + text)


@dataclass(frozen=True, kw_only=True)
class _Caption(Use):
    """Describe pictures, or answer a question about them."""

    model: ModelFolder
    """Model folder or hub name."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Picture files."""
    question: str = ""
    """A question about each picture, instead of a description."""
    choices: tuple[str, ...] = ()
    """Answers of which the likeliest is taken."""


def caption(arguments: list[str]) -> None:
    """Describe pictures: monoformer caption MODEL photo.png [--question "what colour is the circle?"]"""
    options = parse(_Caption, arguments, command="caption")
    if not options.pictures:
        raise ValueError("give at least one picture file")
    if options.choices and not options.question:
        raise ValueError("--choices are answers; give the --question too")
    settings = options.sampling.given(want="text", chooses=bool(options.choices))
    pictures = [open_picture(path) for path in options.pictures]
    pipeline = options.open(options.model)
    said = (
        pipeline.answer(pictures, options.question, choices=options.choices, **settings)
        if options.question
        else pipeline.caption(pictures, **settings)
    )
    for path, text in zip(options.pictures, said, strict=True):
        print(f"{path}: {text}")


@dataclass(frozen=True, kw_only=True)
class _Edit(Use):
    """Change a picture as an instruction says."""

    model: ModelFolder
    """Model folder or hub name."""
    picture: Annotated[Path, tyro.conf.Positional]
    """Picture file."""
    instruction: Annotated[str, tyro.conf.Positional]
    """What to change."""
    strength: float = 1.0
    """Below 1 it is redrawn from the noised picture: near 0 hardly anything changes."""
    mask: Path | None = None
    """A picture file, white (or transparent) where it may change; the rest stays as it is."""
    out: Path = Path("edited.png")
    """Where the new picture goes."""


def edit(arguments: list[str]) -> None:
    """Edit a picture: monoformer edit MODEL photo.png "make the red circle blue" --out edited.png"""
    options = parse(_Edit, arguments, command="edit")
    check_picture_file(options.out)
    settings = options.sampling.given(want="image")
    picture, mask = open_picture(options.picture), _opened(options.mask)
    if options.strength != 1:
        check_strength(options.strength, has_mask=mask is not None)
    pipeline = options.open(options.model)
    edited = pipeline.edit(picture, options.instruction, strength=options.strength, mask=mask, **settings)
    print(*save_pictures(edited, options.out))


@dataclass(frozen=True, kw_only=True)
class _Chat(Use):
    """Talk with the model in the terminal."""

    model: ModelFolder
    """Model folder or hub name."""
    out: Path = field(default=Path("chat"))
    """Folder for the pictures that it draws."""
    compile: bool = False
    """Compile the decoding first: up to minutes, and then it writes faster."""


def chat(arguments: list[str]) -> None:
    """Talk with a model: words and pictures both ways (/image FILE shows it one, /quit ends)"""
    options = parse(_Chat, arguments, command="chat")
    check_folder(options.out)
    pipeline = _writing(options)
    print("Type a message. /image FILE shows a picture, /new forgets the talk, /quit ends.")
    history: list[Segment] = []
    drawn = 0
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            history = []
            continue
        try:
            if line.startswith("/image "):
                history.append(pipeline.context_image(open_picture(Path(line.removeprefix("/image ").strip()))))
            elif line:
                asked = [*history, Text(line, "user")]
                answer = _print_answer(pipeline.stream(asked, **options.sampling.given()), options.out, drawn)
                history, drawn = [*asked, *answer.segments], drawn + len(answer.images)
        except (ValueError, RuntimeError, OSError) as error:  # the talk so far stays
            print(f"that did not work: {error}\n(the talk is as it was before; /new forgets it)")


def _writing(options: _Write | _Chat) -> Pipeline:
    """The pipeline of a command that writes, and what compiling it took."""
    pipeline = options.open(options.model, compile=options.compile)
    decoder = pipeline.engine.network.decoder
    if decoder is not None:
        print(decoder.warmed, file=sys.stderr)
    return pipeline


def check_size(model: str, size: tuple[int, int] | None) -> None:
    """Refuse, before the model is loaded, a height and width that it was not trained to draw. Raises ValueError."""
    if size is not None:
        picture_size(Document(()), size, read_folder_config(find_folder(model)).model)


def _opened(path: Path | None) -> PILImage.Image | None:
    return None if path is None else open_picture(path)


def _print_answer(events: Iterator[Event], folder: Path, drawn: int) -> Document:
    """Words as they come, pictures as files; all of the answer. Raises RuntimeError where it failed."""
    begins = True
    for event in events:
        said = event.text.lstrip() if begins else event.text
        if said:
            print(said, end="", flush=True)
            begins = False
        if event.image is not None:
            (path,) = save_pictures([event.image.to_pil()], folder / f"picture-{drawn}.png")
            print(f"[{path}]" if begins else f"\n[{path}]")
            begins, drawn = True, drawn + 1
        if event.kind == "end":
            print(end="" if begins else "\n")
            if event.made is not None and event.reason != "error":
                return event.made
            raise RuntimeError(event.error)
    raise AssertionError("every stream ends with its end")
