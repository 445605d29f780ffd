"""Draw what a packed row looks like, and who sees whom in it, with the project's own code.

python examples/draw_mask.py docs/images/mask.png
"""

import sys

import matplotlib as mpl
import torch

from monoformer.config.data import SequenceConfig
from monoformer.document import Document, Image, Text
from monoformer.model.attention import dense_mask
from monoformer.packing import collate, pack
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer

mpl.use("Agg")
from matplotlib import pyplot as plt


def picture(*, target: bool, role: str) -> Image:
    """A grey picture of 2x2 patches."""
    return Image(pixels=torch.full((3, 16, 16), 128, dtype=torch.uint8), target=target, role=role)  # type: ignore[arg-type]


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
    layouts = [sequencer.document(first, 0), sequencer.document(second, 1)]
    length = sum(len(layout) for layout in layouts)
    rows = pack(layouts, length=length)
    batch = collate(rows, length=length, pad=tokenizer.pad)
    visible = dense_mask(batch)[0, 0].numpy()
    names = [tokenizer.backend.convert_ids_to_tokens(i).replace("\u0120", "_") for i in batch.ids[0].tolist()]
    private, end = batch.private[0].tolist(), batch.end[0].tolist()
    colours = {"text": "#4c78a8", "noised": "#e45756", "clean": "#54a24b"}

    def kind(index: int) -> str:
        if names[index] not in ("<image>", "<time>"):
            return "text"
        owners = [
            slots
            for slots in batch.images
            for start, noised in zip(slots.start.tolist(), slots.noised.tolist(), strict=True)
            if noised and start - 1 <= index < start + slots.tokens
        ]
        return "noised" if private[index] or owners else "clean"

    figure, axis = plt.subplots(figsize=(8.5, 8.5), constrained_layout=True)
    for q in range(length):
        for k in range(length):
            if visible[q, k]:
                two_way = end[q] > q + 1 and k > q
                axis.add_patch(
                    plt.Rectangle((k, q), 0.92, 0.92, color=colours[kind(k)], alpha=1.0 if two_way else 0.75)
                )
    axis.set(xlim=(0, length), ylim=(length, 0), aspect="equal")
    ticks = [i + 0.5 for i in range(length)]
    axis.set_xticks(ticks, names, rotation=90, fontsize=7, family="monospace")
    axis.set_yticks(ticks, names, fontsize=7, family="monospace")
    axis.xaxis.tick_top()
    axis.set_xlabel("is seen (key)")
    axis.set_ylabel("sees (query)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    axis.legend(handles, ["text token", "noised image (to be drawn)", "clean image"], loc="upper right", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mask.png")
