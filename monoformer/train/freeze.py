"""The frozen text path: what a language model knew, it keeps to the last bit while images are learned (LMFusion).

Knows nothing of optimisers. Invariant: a frozen weight gets no gradient, so it is in no optimiser's group and its
average does not drift. Rows of the embedding and the text head are frozen one by one, since the new tokens' rows train;
`build_optimizers` gives these two matrices no weight decay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from monoformer.config.model import ModelConfig
from monoformer.model.monoformer import MonoFormer, is_text
from monoformer.tokenizer import Tokenizer
from monoformer.train.parallel import local, part


def new_rows(config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    """Token ids that the text model did not have: the image tokens, what its vocabulary grew by, and what was put into
    rows that it had to spare.
    """
    grown = range(config.text_vocabulary or config.vocabulary, config.vocabulary)
    return sorted({tokenizer.boi, tokenizer.eoi, tokenizer.patch, tokenizer.time, *tokenizer.grown, *grown})


def freeze_text(model: MonoFormer, *, rows: Sequence[int]) -> None:
    """Freeze all that text passes through, but for `rows` of the embedding and the text head. Call it once, on the
    network as it trains: sharded, if it is to be.

    Raises ValueError when images have no weights of their own.
    """
    if model.config.experts == "shared":
        raise ValueError(
            "train.freeze = text would leave images nothing to learn with, since model.experts = shared; "
            "add --model.experts modality, or train everything with --train.freeze none"
        )
    for name, parameter in model.named_parameters():
        if name in ("tokens.weight", "text_head.weight"):
            keep_old_rows(parameter, rows)
        elif is_text(name):
            parameter.requires_grad_(False)


def keep_old_rows(parameter: Tensor, rows: Sequence[int]) -> None:
    """Let only these rows of a matrix have a gradient."""
    is_old = torch.ones(len(parameter), 1, dtype=torch.bool, device=parameter.device)
    is_old[list(rows)] = False
    own = local(part(is_old, parameter))

    def keep_new(parameter: Tensor) -> None:
        assert parameter.grad is not None
        local(parameter.grad).masked_fill_(own, 0.0)

    parameter.register_post_accumulate_grad_hook(keep_new)
