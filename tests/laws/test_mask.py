"""Who sees whom: the one rule against a slow definition in DESIGN's words, and FlexAttention against the matrix."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_mask, flex_attention

from monoformer.batch import Batch, Layout
from monoformer.model.attention import dense_mask, flex_mask
from monoformer.packing import collate
from tests import tiny


@dataclass(frozen=True)
class Token:
    """What the rule depends on, told without `end` and `private`."""

    document: tuple[int, int]  # row, document; (row, -1) for padding
    index: int
    block: int | None = None  # patches, and the time token before them
    is_patch: bool = False
    hidden: bool = False  # noised, and there is a clean copy


def tokens_of(layout: Layout, document: tuple[int, int], offset: int, *, time_token: bool) -> list[Token]:
    tokens = [Token(document, offset + i) for i in range(len(layout))]
    for number, block in enumerate(layout.blocks):
        hidden = block.noised and any(b.number == block.number and not b.noised for b in layout.blocks)
        first = block.start - (time_token and not block.by_encoder)
        for i in range(first, block.start + block.grid[0] * block.grid[1]):
            tokens[i] = Token(document, offset + i, block=number, is_patch=i >= block.start, hidden=hidden)
    return tokens


def sees(q: Token, k: Token, *, two_way: bool) -> bool:
    if q.document != k.document:
        return False
    same_block = q.block is not None and q.block == k.block
    if k.hidden and not same_block:
        return False
    if two_way and same_block and q.is_patch and k.is_patch:
        return True
    return k.index <= q.index


def expected(rows: list[list[Layout]], length: int, *, time_token: bool, two_way: bool) -> torch.Tensor:
    result = torch.zeros(len(rows), length, length, dtype=torch.bool)
    for row, items in enumerate(rows):
        tokens: list[Token] = []
        for number, layout in enumerate(items):
            tokens += tokens_of(layout, (row, number), len(tokens), time_token=time_token)
        tokens += [Token((row, -1), i) for i in range(len(tokens), length)]
        for q in tokens:
            for k in tokens:
                result[row, q.index, k.index] = sees(q, k, two_way=two_way)
    return result


def rows_of(mode: str, context: str, seed: int, count: int = 6) -> list[list[Layout]]:
    items = tiny.layouts(mode, seed, count, sequence={"context": context})
    return [items[: count // 2], items[count // 2 :]]


def batch_of(rows: list[list[Layout]], length: int) -> Batch:
    return collate(rows, length=length, pad=tiny.tokenizer().pad)


@pytest.mark.parametrize("context", tiny.CONTEXTS)
@pytest.mark.parametrize("mode", tiny.MODES)
def test_the_mask_is_the_rule_in_words(mode: str, context: str) -> None:
    hidden = 0
    for seed in range(4):
        rows = rows_of(mode, context, seed)
        length = max(sum(map(len, row)) for row in rows) + 4
        batch = batch_of(rows, length)
        config = tiny.model_config(mode)
        truth = expected(rows, length, time_token=config.has_time_token, two_way=config.image_attention == "two-way")
        assert torch.equal(dense_mask(batch)[:, 0], truth)
        hidden += int((batch.private > 0).sum())
    assert (hidden > 0) == (context == "clean_copy"), "the documents must show what the law is about"


def test_everybody_sees_somebody_and_padding_is_seen_by_no_document() -> None:
    rows = rows_of("adaln", "clean_copy", 9)
    batch = batch_of(rows, max(sum(map(len, row)) for row in rows) + 4)
    mask, padding = dense_mask(batch)[:, 0], batch.document < 0
    assert padding.any()
    assert mask.any(dim=2).all(), "a query that sees nothing makes softmax divide by zero"
    assert not (mask & padding[:, None, :] & ~padding[:, :, None]).any()
    assert mask.diagonal(dim1=1, dim2=2).all()


def test_only_its_own_block_sees_a_noised_image_that_has_a_clean_copy() -> None:
    rows = rows_of("token", "clean_copy", 3)
    batch = batch_of(rows, max(sum(map(len, row)) for row in rows))
    mask = dense_mask(batch)[:, 0]
    for row, items in enumerate(rows):
        offset = 0
        for layout in items:
            for block in layout.blocks:
                copies = [b for b in layout.blocks if b.number == block.number and not b.noised]
                if not block.noised or not copies:
                    continue
                own = torch.zeros(mask.shape[1], dtype=torch.bool)
                start, count = offset + block.start, block.grid[0] * block.grid[1]
                own[start - 1 : start + count] = True  # the time token belongs to it
                seen_by = mask[row][:, own].any(dim=1)
                assert not (seen_by & ~own).any()
                assert mask[row, start + count - 1, start - 1], "patches see their time token"
                eoi = offset + copies[0].start + count
                assert batch.ids[row, eoi] == tiny.tokenizer().eoi
                assert mask[row, eoi, eoi - count : eoi].all(), "eoi sees the clean copy"
            offset += len(layout)


@pytest.mark.parametrize("context", tiny.CONTEXTS)
@pytest.mark.parametrize("mode", ["adaln", "token", "causal"])
def test_flex_mask_is_the_dense_mask(mode: str, context: str) -> None:
    rows = rows_of(mode, context, 5, count=24)
    batch = batch_of(rows, 400)
    dense = dense_mask(batch)
    block_mask = flex_mask(batch)
    rebuilt = create_mask(block_mask.mask_mod, len(rows), None, 400, 400, device="cpu")
    assert torch.equal(rebuilt, dense)
    padded = F.pad(dense[:, 0], (0, 112, 0, 112)).view(2, 4, 128, 4, 128)
    needed = padded.any(dim=4).any(dim=2)
    kept = block_mask.to_dense()[:, 0].bool()
    assert (kept | ~needed).all(), "a block that somebody sees was skipped"
    assert not kept.all(), "no block is skipped: FlexAttention would save nothing"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_sdpa() -> None:
    rows = rows_of("token", "clean_copy", 2)
    length = max(sum(map(len, row)) for row in rows) + 4
    batch = batch_of(rows, length)
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, length, 8, generator=random)
    k, v = torch.randn(2, 2, 2, length, 8, generator=random)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(batch), enable_gqa=True)
    flex = flex_attention(q, k, v, block_mask=flex_mask(batch), enable_gqa=True)
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)
