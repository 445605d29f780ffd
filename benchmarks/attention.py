"""FlexAttention against SDPA under the visibility rule: the same numbers, and how long each takes.

python benchmarks/attention.py --device cuda
python benchmarks/attention.py --device cpu --tokens 256 --rows 1      # forward only: FlexAttention trains on CUDA

Rows are packed with documents of text and pictures. Exit code 1 where outputs or gradients differ by more than the
precision's tolerance (1e-4 of the largest magnitude in fp32, 2e-2 in bf16). A table, then one line of JSON.
"""

import sys
from dataclasses import dataclass

import torch
import tyro
from network import report, timed
from torch import Tensor

from monoformer.batch import Batch
from monoformer.device import choose
from monoformer.model.attention import Mask, attend, dense_mask, flex_mask
from monoformer.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Case:
    """Packed rows and heads."""

    rows: int = 4
    tokens: int = 2048
    heads: int = 16
    kv_heads: int = 4
    head_width: int = 64
    text: int = 48
    """Text tokens before each picture."""
    patches: int = 256
    device: str = "auto"
    bf16: bool = False
    repeats: int = 5


def pack(case: Case) -> Batch:
    """Rows full of documents of `text` tokens and one picture; the last of a row is cut short as text."""
    end = torch.arange(1, case.tokens + 1)
    document = torch.arange(case.tokens) // (case.text + case.patches)
    for start in range(case.text, case.tokens - case.patches + 1, case.text + case.patches):
        end[start : start + case.patches] = start + case.patches
    rows = (case.rows, 1)
    zeros = torch.zeros(case.rows, case.tokens, dtype=torch.long)
    positions = torch.arange(case.tokens).repeat(rows)
    return Batch(
        ids=zeros, positions=positions, document=document.repeat(rows), source=zeros, end=end.repeat(rows),
        private=zeros, labels=zeros, images=(),
    )  # fmt: skip


def run(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, backward: bool) -> list[Tensor]:
    """Output, and the gradients of its sum of squares."""
    inputs = [x.detach().requires_grad_(backward) for x in (q, k, v)]
    with torch.set_grad_enabled(backward):
        output = attend(inputs[0], inputs[1], inputs[2], mask)
        if backward:
            output.float().square().sum().backward()  # type: ignore[no-untyped-call]
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]


def main() -> None:
    """Compare, then time."""
    case = tyro.cli(Case)
    device, dtype = choose(case.device), torch.bfloat16 if case.bf16 else torch.float32
    batch, backward = pack(case).to(device), device.type == "cuda"
    random = generator(0, "attention")
    q, k, v = (
        torch.randn(case.rows, heads, case.tokens, case.head_width, generator=random).to(device, dtype)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    masks: dict[str, Mask] = {"sdpa": dense_mask(batch), "flex": flex_mask(batch)}
    outputs = {name: run(q, k, v, mask, backward=backward) for name, mask in masks.items()}
    pairs = zip(outputs["flex"], outputs["sdpa"], strict=True)
    worst = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    times = {}
    for name, mask in masks.items():
        times[name] = min(
            timed(lambda mask=mask: run(q, k, v, mask, backward=backward), device)  # type: ignore[misc]
            for _ in range(case.repeats)
        )
    result = {
        "largest_difference": worst,
        "flex_milliseconds": times["flex"] * 1e3,
        "sdpa_milliseconds": times["sdpa"] * 1e3,
        "speed_up": times["sdpa"] / times["flex"],
        "visible_share": float(dense_mask(batch).float().mean()),
        "gradients_compared": float(backward),
    }
    report("FlexAttention and SDPA", result, case)
    if worst > (2e-2 if case.bf16 else 1e-4):
        sys.exit(f"FlexAttention and SDPA differ by {worst:.2g} of the largest magnitude")


if __name__ == "__main__":
    main()
