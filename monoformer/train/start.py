"""What a run's network starts from: new weights, a model folder of ours, or a language model.

Knows nothing of data. Invariant: new weights are functions of the seed alone.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from monoformer.config.run import RunConfig
from monoformer.model.experts import with_experts
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained import Pretrained, find_folder, load_llama, load_pretrained, read_description
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer
from monoformer.train.parallel import part


def load_start(config: RunConfig) -> tuple[Pretrained, str]:
    """What the run starts from, with experts where it asks for them; and what was loaded and what is new."""
    started, news = read_start(config)
    if config.model.experts == "modality" and started.model.config.experts == "shared":
        started = replace(started, model=with_experts(started.model))
        news = f"{news}; image experts start as copies of the text weights"
    return started, news


def read_start(config: RunConfig) -> tuple[Pretrained, str]:
    """A model folder of ours, or a language model, which keeps the run's image side; and what was loaded."""
    folder = find_folder(config.start)
    if read_description(folder).get("model_type") == "monoformer":
        ours = load_pretrained(folder)
        count = len(list(ours.model.parameters()))
        return ours, f"started from {config.start}: all {count} tensors loaded, none new"
    image_side = replace(config.model, experts="shared")  # experts start as copies, once the text path is loaded
    llama = load_llama(folder, image_side=image_side, seed=config.seed, tokenizer=config.tokenizer.path)
    if config.sequence.row > llama.model.config.context:
        longest = llama.model.config.context
        raise ValueError(
            f"{config.start} reads {longest} tokens at most; lower --sequence.row = {config.sequence.row} to {longest}"
        )
    started = Pretrained(
        model=llama.model,
        tokenizer=llama.tokenizer,
        diffusion=config.diffusion,
        generate=config.generate,
        autoencoder=config.autoencoder,
        vision=config.vision,
    )
    return started, f"started from {config.start}: {llama.news}"


def build_model(
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    shared: Callable[[MonoFormer], None] = lambda model: None,
    device: torch.device | str = "cpu",
) -> tuple[MonoFormer, str]:
    """The network with new weights drawn from the seed, and what there is to say of it.

    `shared` is called before there are weights: of a sharded network each process only ever holds its part.
    """
    with torch.device("meta"):  # no memory, and no draw from the global generator
        model = MonoFormer(replace(config.model, vocabulary=config.model.vocabulary or tokenizer.size))
    shared(model)
    model.to_empty(device=device)
    model.tie()
    model.initialize(generator(config.seed, "weights"), part=part)
    count = sum(p.numel() for p in model.parameters())
    return model, f"new weights: {count / 1e6:.1f}M parameters from seed {config.seed}"
