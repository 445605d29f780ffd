"""From a configuration to a trainer's parts: tokenizer, model, source, loader.

A run's tokenizer is trained once and kept in the run's folder, so that resuming never trains another.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder, build_autoencoder, check_fits
from monoformer.batch import Batch
from monoformer.config.data import caches, check_named
from monoformer.config.run import RunConfig, check_start
from monoformer.config.train import MuonConfig
from monoformer.data.build import build_source
from monoformer.data.cache import check_caches
from monoformer.data.loader import Loader
from monoformer.data.skipped import BadDocument, unreadable
from monoformer.data.source import Source
from monoformer.data.windows import Numbered
from monoformer.device import announce, choose
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Text
from monoformer.files import whole_folder
from monoformer.model.monoformer import MonoFormer
from monoformer.packing import Row, collate, pack
from monoformer.pretrained import Pretrained, build_sequencer
from monoformer.sequence import Plan, Sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.train.checkpoint import last_step
from monoformer.train.freeze import freeze_text, new_rows
from monoformer.train.lora import plain, start_adapters, with_adapters
from monoformer.train.parallel import ALONE, Ranks, rows_of_pass
from monoformer.train.plan import warn_of_memory
from monoformer.train.precision import computes_in_bf16
from monoformer.train.settled import settled
from monoformer.train.sizes import check_sizes, picture_shape, sized
from monoformer.train.start import Start, check_new, fill_parts, new_start, read_start, taking
from monoformer.train.trainer import Parts
from monoformer.vision import build_vision, fitted

Collated = TypeVar("Collated")

TOKENIZER_DOCUMENTS = 4000
"""Documents whose text a new tokenizer is trained on."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A run, ready to train, and the model in the form that is saved and sampled from."""

    parts: Parts
    pretrained: Pretrained
    news: str
    """What is new in the network, or from which step the run goes on."""

    def plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of the network as it trains -> those of the plain one, adapters merged."""
        return plain(weights, self.parts.config)


def build_run(
    config: RunConfig,
    *,
    autoencoder: Autoencoder | None = None,
    ranks: Ranks = ALONE,
    warn: Callable[[str], None] = warnings.warn,
) -> Built:
    """Build everything that a configuration names. Raises ValueError for settings that contradict the data.

    `autoencoder` stands in for the one that `config.autoencoder.path` names, which is then only a name. `warn` is told
    what memory will not do before any of it is taken.
    """
    device = choose(config.train.device)
    check_start(config)
    check_named(config.data)
    rows_of_pass(config.train.rows, config.train.pass_rows, ranks.world)
    started = read_start(config) if config.start else None
    if started:
        config = taking(config, started.pretrained)
    config = settled(replace(config, data=sized(config.data, config.model)), device=device, ranks=ranks)
    check_sizes(config)
    announce(device.type, *features_of(config))
    bf16 = computes_in_bf16(config.train, device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    vision = build_vision(config.vision, device=device, dtype=dtype)
    config = replace(config, model=fitted(config.model, vision))
    if autoencoder is None:
        autoencoder = build_autoencoder(config.autoencoder, device=device, dtype=dtype)
    check_fits(autoencoder, config.model)
    check_caches(config.data, autoencoder, path=config.autoencoder.path)
    source = build_source(config.data, split="train", seed=config.seed, readers=config.train.readers, later=True)
    tokenizer = started.pretrained.tokenizer if started else build_tokenizer(config, ranks=ranks)
    model, news = build_network(config, started, tokenizer, ranks=ranks, device=device, bf16=bf16, warn=warn)
    config = replace(config, model=model.config)
    pretrained = to_use(model, tokenizer, config, started)
    parts = Parts(
        config=config,
        model=model,
        objective=build_objective(config.diffusion),
        autoencoder=autoencoder,
        loader=build_loader(config, source, tokenizer, ranks=ranks),
        sources=source.names,
        device=device,
        vision=vision,
        ranks=ranks,
    )
    step = last_step(config.path)
    return Built(parts=parts, pretrained=pretrained, news=f"goes on from step {step}" if step else news)


def to_use(model: MonoFormer, tokenizer: Tokenizer, config: RunConfig, started: Start | None) -> Pretrained:
    """A run's model in the form that is saved and sampled from."""
    return Pretrained(
        model=model,
        tokenizer=tokenizer,
        diffusion=config.diffusion,
        generate=config.generate,
        autoencoder=config.autoencoder,
        vision=config.vision,
        picture_shape=picture_shape(config.data, before=started.pretrained.picture_shape if started else "crop"),
    )


def features_of(config: RunConfig) -> list[str]:
    """What of docs/status.md a run uses."""
    used = {
        "train": True,
        "muon": isinstance(config.train.optimizer, MuonConfig),
        "lora": config.train.lora.rank > 0,
        "unet": config.model.image_patches == "unet",
        "experts": config.model.experts == "modality",
        "latents": bool(config.autoencoder.path),
        "vision": bool(config.vision.path),
        "cache": bool(caches(config.data)),
    }
    return [name for name, is_used in used.items() if is_used]


def build_network(
    config: RunConfig,
    started: Start | None,
    tokenizer: Tokenizer,
    *,
    ranks: Ranks,
    device: torch.device,
    bf16: bool,
    warn: Callable[[str], None],
) -> tuple[MonoFormer, str]:
    """The network as it trains: spread over the processes, with its weights, frozen and adapted; what is new in it."""
    if started and config.model.vision_width != started.model.config.vision_width:
        check_new(config, "the projection of the vision encoder's features")
        started = started.with_vision(config.model)
    recipe = started.recipe if started else new_start(config, tokenizer)
    recipe = replace(recipe, official=config.train.starting_values == "official")
    if config.train.lora.rank:
        recipe = with_adapters(recipe, config.train)
    for line in warn_of_memory(replace(config, model=recipe.model.config), device, ranks):
        warn(line)
    model = fill_parts(recipe, config.train.parallel, ranks, device=device, bf16=bf16)
    count = sum(p.numel() for p in model.parameters())
    news = started.news if started else f"new weights: {count / 1e6:.1f}M parameters from seed {config.seed}"
    rows = new_rows(model.config, tokenizer)
    if config.train.lora.rank:
        news += f"; {start_adapters(model, config.train, seed=config.seed, rows=rows)}"
    elif config.train.freeze == "text":
        freeze_text(model, rows=rows)
    return model, news


def build_tokenizer(config: RunConfig, *, ranks: Ranks = ALONE) -> Tokenizer:
    """The run's tokenizer: named, already in its folder, or trained on its first documents and put there."""
    folder = config.path / "tokenizer"
    with ranks.in_turn():
        if ranks.rank and not config.tokenizer.path:  # the first process has just put it there
            return Tokenizer.from_folder(folder)
        found = find_tokenizer(config)
        tokenizer = found or train_tokenizer(config)
        if not found:
            with whole_folder(folder) as temporary:
                tokenizer.save(temporary)
    return tokenizer


def find_tokenizer(config: RunConfig) -> Tokenizer | None:
    """The tokenizer that is named, or that a run with checkpoints has; None where it is still to be trained.

    What a run that never began has left may be of other documents.
    """
    if config.tokenizer.path:
        return Tokenizer.from_folder(config.tokenizer.path)
    return Tokenizer.from_folder(config.path / "tokenizer") if last_step(config.path) else None


def train_tokenizer(config: RunConfig) -> Tokenizer:
    """A tokenizer of the text of the run's first documents. Raises ValueError, with a cause, where there is none."""
    texts: list[str] = []
    bad: list[BadDocument] = []
    source = build_source(config.data, split="train", seed=config.seed, later=True)  # texts alone are wanted
    for document in islice(source, TOKENIZER_DOCUMENTS):
        if isinstance(document, BadDocument):
            bad.append(document)
        else:
            texts += [segment.text for segment in document.segments if isinstance(segment, Text)]
    if len(bad) == TOKENIZER_DOCUMENTS:
        raise ValueError(f"no document of the data can be used: {bad[0].cause} ({bad[0]})")
    if not any(texts):
        raise ValueError("the data holds no text to train a tokenizer on; give --tokenizer.path")
    return Tokenizer.train(texts, vocabulary=config.tokenizer.vocabulary)


def build_loader(config: RunConfig, source: Source, tokenizer: Tokenizer, *, ranks: Ranks = ALONE) -> Loader[Batch]:
    """This process's stream of packed batches."""

    def collate_rows(rows: list[Row]) -> Batch:
        return collate(rows, length=config.sequence.row, pad=tokenizer.pad)

    return load_rows(config, source, tokenizer, collate=collate_rows, ranks=ranks)


def load_rows(
    config: RunConfig,
    source: Source,
    tokenizer: Tokenizer,
    *,
    collate: Callable[[list[Row]], Collated],
    ranks: Ranks = ALONE,
) -> Loader[Collated]:
    """This process's stream of packed rows, as many at a time as one pass reads; it lays out and reads no others."""
    sequencer = build_sequencer(config.model, tokenizer, config.sequence)
    length = config.sequence.row
    places = {name: place for place, name in enumerate(source.names)}

    def pack_window(documents: Numbered) -> tuple[list[list[Plan]], dict[int, BadDocument]]:
        plans, bad = plan_all(sequencer, documents, length=length, seed=config.seed)
        plans = [replace(plan, source=places[source.origin(plan.document)]) for plan in plans]
        return pack(plans, length=length, seed=config.seed), bad

    rows = rows_of_pass(config.train.rows, config.train.pass_rows, ranks.world)
    return Loader(
        source,
        pack_window,
        collate,
        read=partial(read_row, sequencer),
        window=config.sequence.window,
        rows=rows,
        rank=ranks.rank,
        world=ranks.world,
        readers=config.train.readers,
        skip_limit=config.train.skip_limit,
    )


def read_row(sequencer: Sequencer, row: Sequence[Plan]) -> tuple[Row, dict[int, BadDocument]]:
    """The row laid out and its images read; without documents of which one is broken, and by number what is wrong."""
    whole: Row = []
    bad: dict[int, BadDocument] = {}
    for plan in row:
        try:
            whole.append(sequencer.lay_out(plan).read())
        except BadDocument as broken:
            bad[plan.document] = broken
        except Exception as error:
            bad[plan.document] = unreadable(error, name=f"document {plan.document}")
    return whole, bad


def plan_all(
    sequencer: Sequencer, documents: Numbered, *, length: int, seed: int
) -> tuple[list[Plan], dict[int, BadDocument]]:
    """The documents' layouts to be; by number, what is wrong with those that have none or none that fits a row."""
    plans: list[Plan] = []
    bad: dict[int, BadDocument] = {}
    for number, document in documents:
        try:
            plan = sequencer.plan(document, number, seed=seed)
        except Exception as error:  # templates and tokenizers raise whatever they meet
            bad[number] = BadDocument(str(error), cause="cannot be laid out")
            continue
        if len(plan) > length:
            say = f"{len(plan)} tokens, more than a row of {length}; raise --sequence.row (and --model.context)"
            bad[number] = BadDocument(say, cause="longer than a row")
        else:
            plans.append(plan)
    return plans, bad
