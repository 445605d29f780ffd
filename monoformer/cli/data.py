"""data check: what a run would read, before it is trained; data replay: what a step read that went wrong."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monoformer.cli.options import take, whole_number
from monoformer.cli.training import read_config
from monoformer.config.data import check_named
from monoformer.config.run import check_start
from monoformer.document import Document, Image
from monoformer.gallery import Cell, Section, draw_gallery
from monoformer.train.replay import read_bad_step
from monoformer.train.survey import Packing, Survey, check_data

SHOWN = 12
"""Pictures of each source on the contact sheet."""
WORDS = 160
"""Most characters under a picture."""
USAGE = """usage: monoformer data check PRESET [--documents 200] [--out data-check.png] [options of train ...]
       monoformer data check --config FILE ...
       monoformer data replay RUN/bad-steps/step-N.json [--out bad-step.png]"""


def data(arguments: list[str]) -> None:
    """Check the data of a run, or look at a step that it left out: monoformer data check|replay ..."""
    if not arguments or {"-h", "--help"} & set(arguments[:2]):
        print(f"{USAGE}\n\ncheck reads documents of every source: counts, lengths, pictures, errors, padding.")
        print("replay prints the documents of a step that had no finite gradient, and draws its pictures.")
        sys.exit()
    match arguments[0]:
        case "check":
            _check(arguments[1:])
        case "replay":
            _replay(arguments[1:])
        case other:
            raise ValueError(f"data has the commands check and replay, but {other!r} was given; see monoformer data -h")


def _check(arguments: list[str]) -> None:
    rest, given = take(arguments, documents="200", out="data-check.png")
    count = whole_number("documents", given["documents"], least=1)
    config, out = read_config(rest), Path(given["out"])
    check_start(config)
    check_named(config.data)
    surveys, now, best = check_data(config, count=count)
    console = Console()
    for one in surveys:
        console.print(_table(one))
    console.print(_say(now, best), markup=False, soft_wrap=True)
    _save([section for one in surveys if (section := _sheet(one.name, one.documents)).cells], out, console)
    for one in surveys:
        one.check(config.train.skip_limit)


def _replay(arguments: list[str]) -> None:
    rest, given = take(arguments, out="bad-step.png")
    if len(rest) != 1:
        raise ValueError("give one file: monoformer data replay RUN/bad-steps/step-N.json")
    path, console = Path(rest[0]), Console()
    folder = path.parent.parent
    config = replace(read_config(["--config", str(folder / "config.json")]), folder=str(folder))
    bad = read_bad_step(path, config)
    losses = ", ".join(f"{name} {value}" for name, value in bad.losses.items())
    console.print(f"step {bad.step}: {losses}; {len(bad.documents)} documents", markup=False, soft_wrap=True)
    for number, document in bad.documents.items():
        console.print(f"{number} ({bad.sources[number]}): {_words(document)}", markup=False, soft_wrap=True)
    sheet = _sheet(f"step {bad.step}", list(bad.documents.values()), most=len(bad.documents))
    _save([sheet] if sheet.cells else [], Path(given["out"]), console)


def _save(sections: list[Section], out: Path, console: Console) -> None:
    if sections:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_gallery(sections).save(out)
        console.print(f"contact sheet: {out}", markup=False, soft_wrap=True)


def _table(survey: Survey) -> Table:
    table = Table(title=survey.name, title_justify="left", show_header=False, title_style="bold", min_width=60)
    for name, value in survey.figures():
        table.add_row(name, escape(value))
    return table


def _say(now: Packing, best: Packing) -> str:
    said = f"{now.rows} rows of {now.row} tokens a step: {now.padding:.1%} padding"
    if best.row == now.row:
        return said
    options = f"--sequence.row {best.row} --train.rows {best.rows}"
    return f"{said}; {best.rows} rows of {best.row} would have {best.padding:.1%} ({options})"


def _sheet(name: str, documents: Sequence[Document], *, most: int = SHOWN) -> Section:
    pairs = [(image, document) for document in documents for image in document.images if image.has_pixels]
    return Section(name, tuple(Cell((image.to_pil(),), _words(document)) for image, document in pairs[:most]))


def _words(document: Document) -> str:
    """A document's text with its roles' first letters, and where its pictures are."""
    said = []
    for part in document.segments:
        who = f"{part.role[0].upper()}: " if part.role else ""
        said.append(who + (("[draw]" if part.target else "[read]") if isinstance(part, Image) else part.text))
    words = " ".join(said)
    return words if len(words) <= WORDS else f"{words[:WORDS]}..."
