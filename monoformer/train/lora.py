"""Low-rank adapters (LoRA, arXiv 2106.09685): W x + (alpha / rank) B A x, where W stays as it is; A and B are trained.

The layers are peft's; which matrices get them, their first weights and the merging are ours. Knows nothing of
optimizers or files. Invariant: B starts at zero, so the adapted network begins as the network; a merged one has its
very names and shapes, so that whoever loads it knows nothing of adapters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from monoformer.config.run import RunConfig
from monoformer.config.train import LoRAConfig, TrainConfig
from monoformer.model.monoformer import MonoFormer, is_text
from monoformer.pretrained.recipe import Recipe
from monoformer.randomness import generator
from monoformer.train.freeze import keep_old_rows
from monoformer.train.parallel import part

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
"""How peft names the frozen layer, A (rank, in) and B (out, rank)."""


def with_adapters(recipe: Recipe, config: TrainConfig) -> Recipe:
    """The same network with its matrices frozen and beside them adapters, as `config.lora` says; without weights yet.

    Raises ValueError where no matrix is left to adapt, or peft is absent.
    """
    names = adapted(recipe.model, config)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("train.lora needs peft; install it with: pip install 'monoformer[lora]'") from None
    described = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=names)
    # on the meta device: nothing is drawn from the global generator
    inject_adapter_in_model(described, recipe.model, low_cpu_mem_usage=True)
    frozen = {f"{name}.weight": f"{name}{BASE}weight" for name in names}
    assert not any(name in frozen for drawn in recipe.new.values() for name in drawn), "only known matrices are adapted"
    return replace(recipe, read={frozen.get(name, name): read for name, read in recipe.read.items()})


def start_adapters(model: MonoFormer, config: TrainConfig, *, seed: int, rows: Sequence[int]) -> str:
    """Give the adapters their first weights, in the parts that a process has of them; what there is to say of it.

    With `images = whole`, what images alone pass through is trained too, and `rows` of the embedding and the text head.
    """
    ending = f"{DOWN}weight"
    names = [name.removesuffix(ending) for name, _ in model.named_parameters() if name.endswith(ending)]
    for name in names:
        initialize(model.get_submodule(name), generator(seed, "lora", name))
    if config.lora.images == "whole":
        for parameter in model.image_parameters():
            parameter.requires_grad_(True)
        for matrix in {model.tokens.weight, model.text_head.weight}:  # one, where they are tied
            keep_old_rows(matrix.requires_grad_(True), rows)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    said = f"{trained / 1e6:.2f}M of {whole / 1e6:.2f}M trained"
    return f"adapters of rank {config.lora.rank} in {len(names)} matrices: {said}"


def adapted(model: MonoFormer, config: TrainConfig) -> list[str]:
    """The layers that get adapters: those of the named matrices that nothing else trains or keeps."""
    leaves = tuple(f".{matrix}" for matrix in config.lora.matrices)
    names = [
        name
        for name, module in model.transformer.named_modules(prefix="transformer")
        if isinstance(module, nn.Linear)
        and name.endswith(leaves)
        and not (is_text(f"{name}.weight") and config.freeze == "text")
        and not (not is_text(f"{name}.weight") and config.lora.images == "whole")
    ]
    if not names:
        raise ValueError(
            f"train.lora has no matrix to adapt: train.freeze = {config.freeze} keeps the text path, "
            f"train.lora.images = {config.lora.images}, and model.experts = {model.config.experts}; "
            f"adapt experts (--model.experts modality), or set --train.freeze none"
        )
    return names


@torch.no_grad()
def initialize(layer: nn.Module, draws: torch.Generator) -> None:
    """A drawn with deviation 1 / sqrt(fan-in), B zero."""
    down, up = (layer.get_submodule(f"lora_{name}.default").weight for name in "AB")
    assert isinstance(down, Tensor)
    assert isinstance(up, Tensor)
    down.copy_(part(torch.randn(down.shape, generator=draws) * down.shape[1] ** -0.5, down))
    up.zero_()


@torch.no_grad()
def merged(state: Mapping[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """The plain network's tensors: W + (alpha / rank) B A in the place of each adapted W, everything else as it is."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if DOWN in name or UP in name:
            continue
        stem = name.removesuffix("weight")
        down, up = (state.get(stem.replace(BASE, side) + "weight") for side in (DOWN, UP))
        if BASE in name and down is not None and up is not None:
            value = (value.double() + config.alpha / config.rank * (up.double() @ down.double())).to(value.dtype)
        plain[name.replace(BASE, ".")] = value
    return plain


def plain(weights: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """All weights of a run's network as it trains -> those of the plain one, adapters merged."""
    state = dict(weights)
    if config.model.tie_embeddings:
        state["text_head.weight"] = state["tokens.weight"]
    return merged(state, config.train.lora) if config.train.lora.rank else state
