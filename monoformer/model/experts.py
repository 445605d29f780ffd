"""Modality experts from a text model (LMFusion, arXiv 2412.15188).

Knows nothing of files or training. Invariant: the network with experts computes what the one without computed, text to
the last bit, until one of them is trained.
"""

from dataclasses import replace

import torch

from monoformer.model.monoformer import MonoFormer


def with_experts(model: MonoFormer) -> MonoFormer:
    """The same network, its tensors reused, with image experts that are copies of the text weights."""
    assert model.config.experts == "shared", "the network has experts already"
    with torch.device("meta"):
        grown = MonoFormer(replace(model.config, experts="modality"))
    state = model.state_dict()
    names = grown.state_dict()
    moved = {name: state[name] if name in state else state[text_name(name)].clone() for name in names}
    grown.load_state_dict(moved, assign=True)
    grown.tie()
    return grown.train(model.training)


def text_name(name: str) -> str:
    """The text weight that an expert's weight starts from."""
    return name.replace(".image.", ".").replace("image_norm", "norm")
