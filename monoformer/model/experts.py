"""Modality experts from a text model (LMFusion, arXiv 2412.15188, section 3).

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
    copied = {name: state.get(name, state[_text_name(name)]) for name in grown.state_dict()}
    moved = {name: value if name in state else value.clone() for name, value in copied.items()}
    grown.load_state_dict(moved, assign=True)
    grown.tie()
    return grown.train(model.training)


def _text_name(name: str) -> str:
    """The text weight that an expert's weight starts from."""
    return name.replace(".image.", ".").replace("image_norm", "norm")
