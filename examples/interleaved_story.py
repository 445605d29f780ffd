r"""A picture book: words and pictures in one document, the model decides itself when to draw.

python examples/interleaved_story.py models/monoformer-mini "a small blue ring on a white background" \
    "make the ring red" --out story.png

Each line is the reader's turn; the model answers in words, pictures or both, and sees all that came before.
"""

import argparse
from pathlib import Path

from monoformer import Pipeline, Text
from monoformer.document import Image, Segment
from monoformer.gallery import Cell, Section, draw_gallery


def main() -> None:
    """Tell the story turn by turn, then lay it out as one page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("lines", nargs="+", help="the reader's turns")
    options.add_argument("--out", type=Path, default=Path("story.png"))
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    pipeline = Pipeline.from_pretrained(given.model)
    history: list[Segment] = []
    cells = []
    for turn, line in enumerate(given.lines):
        history.append(Text(line, "user"))
        answer = pipeline.chat(history, seed=given.seed + turn, max_tokens=60)
        history += answer.segments
        words = " ".join(part.text.strip() for part in answer.segments if isinstance(part, Text))
        pictures = tuple(part.to_pil() for part in answer.segments if isinstance(part, Image))
        cells.append(Cell(pictures, f"{line}\n{words}".strip()))
        print(f"> {line}\n{words} {'[picture]' * len(pictures)}")
    draw_gallery([Section("a story", tuple(cells))]).save(given.out)
    print(given.out)


if __name__ == "__main__":
    main()
