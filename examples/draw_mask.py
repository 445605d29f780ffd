"""Draw what a packed row looks like, and who sees whom in it, with the project's own code.

python examples/draw_mask.py docs/images/mask.png
"""

import sys

import torch

from monoformer.anatomy import paint_mask
from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image, Role, Text
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer


def picture(*, target: bool, role: Role) -> Image:
    """A grey picture of 2x2 patches."""
    return Image(pixels=torch.full((3, 16, 16), 128, dtype=torch.uint8), target=target, role=role)


def main(path: str) -> None:
    """Two documents in one row: "draw, then make it blue", and "what is this?"."""
    tokenizer = Tokenizer.train(["red cat now blue a"] * 8, vocabulary=300)
    sequencer = Sequencer(
        tokenizer=tokenizer, time_token=True, cell=8, config=SequenceConfig(drop_text=0, drop_context=0)
    )
    first = Document(
        (
            Text("red cat", "user"),
            picture(target=True, role="assistant"),
            Text("now blue", "user"),
            picture(target=True, role="assistant"),
        )
    )
    second = Document((picture(target=False, role="user"), Text("a cat", "assistant")))
    paint_mask([sequencer.document(first, 0), sequencer.document(second, 1)], tokenizer).save(path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mask.png")
