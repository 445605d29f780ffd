"""A sequence taken apart is the whole sequence, and its picture is the rule of attention."""

import numpy as np
import pytest

from monoformer.anatomy import COLOURS, mask_colours, paint_mask, take_apart
from monoformer.model.attention import dense_mask
from monoformer.packing import collate
from tests import tiny


@pytest.mark.parametrize("mode", ["adaln", "token", "causal", "vision"])
def test_parts_are_the_tokens_of_the_layout(mode: str) -> None:
    for layout in tiny.layouts(mode, 3, 6, sequence={"noise_draws": 2}):
        parts = take_apart(layout, tiny.tokenizer())
        assert sum(part.tokens for part in parts) == len(layout)
        kinds = [part.kind for part in parts for _ in range(part.tokens)]
        for block in layout.blocks:
            inside = kinds[block.start : block.start + block.grid[0] * block.grid[1]]
            assert set(inside) == {"noised" if block.noised else "clean"}
        patches = sum(block.grid[0] * block.grid[1] for block in layout.blocks)
        times = layout.ids.count(tiny.tokenizer().time)
        assert kinds.count("text") == len(layout) - patches - times


def test_a_square_is_white_where_nothing_is_seen() -> None:
    layouts = tiny.layouts("token", 1, 4, chat=True)
    length = sum(map(len, layouts))
    seen = dense_mask(collate([layouts], length=length, pad=tiny.tokenizer().pad))[0, 0].numpy()
    colours = mask_colours(layouts, tiny.tokenizer())
    assert np.array_equal((colours != 255).any(axis=-1), seen)
    ahead = np.argwhere(seen & np.triu(np.ones_like(seen), 1))
    assert len(ahead) > 0, "the documents hold no image that looks ahead"
    assert {tuple(colours[q, k].tolist()) for q, k in ahead} <= {COLOURS["noised"], COLOURS["clean"]}


def test_the_picture_is_a_picture() -> None:
    picture = paint_mask(tiny.layouts("adaln", 1, 2), tiny.tokenizer(), inches=3)
    assert picture.size == (330, 330)
    assert len(set(picture.get_flattened_data())) > 3
