"""What a run's network starts from: new weights, a model folder of ours, or a language model.

Knows nothing of data. Invariant: new weights are functions of the seed alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from monoformer.config.generate import kept
from monoformer.config.model import ModelConfig
from monoformer.config.parallel import ParallelConfig
from monoformer.config.run import RunConfig, to_json
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained import Pretrained, find_folder, is_monoformer, read_llama, read_pretrained
from monoformer.pretrained.recipe import Recipe
from monoformer.tokenizer import Tokenizer
from monoformer.train.guards import fields_of
from monoformer.train.parallel import Ranks, part, spread


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from, its network without weights yet, and what there is to say of it."""

    pretrained: Pretrained
    recipe: Recipe
    news: str

    @property
    def model(self) -> MonoFormer:
        """The network."""
        return self.recipe.model

    def with_vision(self, config: ModelConfig) -> "Start":
        """The same with a new projection of a vision encoder's features."""
        news = f"{self.news}; the projection of the vision encoder's features is new"
        return replace(self, recipe=self.recipe.with_vision(config), news=news)


def taking(config: RunConfig, start: Pretrained) -> RunConfig:
    """The run with what it takes from a model: all of its recipe that the run does not name itself."""
    return replace(
        config,
        model=start.model.config,
        diffusion=start.diffusion,
        autoencoder=config.autoencoder if config.autoencoder.path else start.autoencoder,
        vision=config.vision if config.vision.path else start.vision,
        generate=kept(start.generate, config.generate),
    )


def check_taken(asked: RunConfig, preset: RunConfig, taken: RunConfig) -> None:
    """Refuse fields that were asked for, other than the preset's, where what the run starts from has others.

    `taken` is the run as it will be.
    """
    if not asked.start:
        return
    before, given, found = (fields_of(to_json(config)) for config in (preset, asked, taken))
    ours = is_monoformer(find_folder(asked.start))
    for name, value in given.items():
        section = name.partition(".")[0]
        if section not in ("model", "diffusion", "tokenizer") or value == before.get(name):
            continue
        overruled = (ours or name != "tokenizer.path") if section == "tokenizer" else value != found.get(name)
        if overruled:
            has = f"with {found[name]!r}" if section != "tokenizer" and name in found else "with one of its own"
            raise ValueError(
                f"{name} = {value!r} would have no effect: the run starts from {asked.start}, which comes {has}; "
                f"leave --{name.replace('_', '-')} out, or --from for a run from nothing"
            )


def read_start(config: RunConfig) -> Start:
    """What the run starts from, with experts where it asks for them."""
    folder = find_folder(config.start)
    start = _read_ours(config, folder) if is_monoformer(folder) else _read_llama(config, folder)
    if config.model.experts == "shared" or start.model.config.experts == "modality":
        return start
    news = f"{start.news}; image experts start as copies of the text weights"
    recipe = start.recipe.with_experts()
    return Start(pretrained=replace(start.pretrained, model=recipe.model), recipe=recipe, news=news)


def _read_ours(config: RunConfig, folder: Path) -> Start:
    pretrained, recipe = read_pretrained(folder)
    recipe = replace(recipe, seed=config.seed)
    news = f"started from {config.start}: all {len(recipe.read)} tensors loaded, none new"
    return Start(pretrained=pretrained, recipe=recipe, news=news)


def _read_llama(config: RunConfig, folder: Path) -> Start:
    """A language model, which keeps the run's image side."""
    check_new(config, "what images pass through")
    image_side = replace(config.model, experts="shared")  # experts start as copies of the text path
    llama, recipe = read_llama(folder, image_side=image_side, seed=config.seed, tokenizer=config.tokenizer.path)
    longest = llama.model.config.context
    if config.sequence.row > longest:
        raise ValueError(
            f"{config.start} reads {longest} tokens at most; lower --sequence.row = {config.sequence.row} to {longest}"
        )
    pretrained = Pretrained(
        model=llama.model,
        tokenizer=llama.tokenizer,
        diffusion=config.diffusion,
        generate=config.generate,
        autoencoder=config.autoencoder,
        vision=config.vision,
    )
    return Start(pretrained=pretrained, recipe=recipe, news=f"started from {config.start}: {llama.news}")


def check_new(config: RunConfig, what: str) -> None:
    """Refuse adapters alone where a model gets weights that only training can make good."""
    if config.train.lora.rank and config.train.lora.images == "adapters":
        raise ValueError(
            f"{what} is new in {config.start}, and adapters alone cannot train it; add --train.lora.images whole"
        )


def new_start(config: RunConfig, tokenizer: Tokenizer) -> Recipe:
    """A network whose weights are all drawn from the seed."""
    with torch.device("meta"):  # no memory, and no draw from the global generator
        model = MonoFormer(replace(config.model, vocabulary=config.model.vocabulary or tokenizer.size))
    names = tuple(name for name, _ in model.named_parameters())
    return Recipe(model=model, read={}, new={"weights": names}, seed=config.seed)


def fill_parts(recipe: Recipe, config: ParallelConfig, ranks: Ranks, *, device: torch.device, bf16: bool) -> MonoFormer:
    """The network on its device with its weights; where it is sharded, no process ever holds more than its part."""
    spread(recipe.model, config, ranks, device=device, bf16=bf16)
    recipe.model.to_empty(device=device)
    return recipe.fill(part=part).train()
