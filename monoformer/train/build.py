"""From a configuration to a trainer's parts: tokenizer, model, source, loader.

A run's tokenizer is trained once and kept in the run's folder, so that resuming never trains another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder, build_autoencoder, check_fits
from monoformer.batch import Batch, Layout
from monoformer.config.data import check_named
from monoformer.config.run import RunConfig
from monoformer.data.build import build_source
from monoformer.data.cache import check_caches
from monoformer.data.loader import Loader, Numbered
from monoformer.data.skipped import BadDocument
from monoformer.data.source import Source, usable
from monoformer.device import choose
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Text
from monoformer.model.experts import with_experts
from monoformer.model.monoformer import MonoFormer
from monoformer.packing import Row, collate, pack
from monoformer.pretrained import (
    Pretrained,
    build_sequencer,
    find_folder,
    load_llama,
    load_pretrained,
    read_description,
)
from monoformer.randomness import generator
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.train.freeze import freeze_text, new_rows
from monoformer.train.loop import computes_in_bf16
from monoformer.train.lora import add_adapters, merged
from monoformer.train.sizes import check_sizes, sized
from monoformer.train.trainer import Parts
from monoformer.vision import build_vision, fitted

TOKENIZER_DOCUMENTS = 4000
"""Documents whose text a new tokenizer is trained on."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A run, ready to train, and the model in the form that is saved and sampled from."""

    parts: Parts
    pretrained: Pretrained
    news: str
    """What was newly initialised when the run started from a model."""

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Averages of what is trained -> every weight of the plain network, adapters merged: what is saved and drawn
        from.
        """
        state, config = {**self.parts.model.state_dict(), **weights}, self.parts.config
        if config.model.tie_embeddings:
            state["text_head.weight"] = state["tokens.weight"]
        return merged(state, config.train.lora) if config.train.lora.rank else state


def empty_copy(parts: Parts) -> MonoFormer:
    """A network of the same shape, for weights to be loaded into: whole and plain, however the run's own is."""
    with torch.device("meta"):
        model = MonoFormer(parts.config.model)
    model.to_empty(device=parts.device)
    model.tie()
    return model.eval()


def build_run(config: RunConfig, *, autoencoder: Autoencoder | None = None) -> Built:
    """Build everything that a configuration names. Raises ValueError for settings that contradict the data.

    `autoencoder` stands in for the one that `config.autoencoder.path` names, which is then only a name.
    """
    device = choose(config.train.device)
    check_named(config.data)
    started, news = load_start(config) if config.start else (None, "")
    if started:
        own = config.autoencoder if config.autoencoder.path else started.autoencoder
        eyes = config.vision if config.vision.path else started.vision
        shape, diffusion = started.model.config, started.diffusion
        config = replace(config, model=shape, diffusion=diffusion, autoencoder=own, vision=eyes)
    config = replace(config, data=sized(config.data, config.model))
    check_sizes(config)
    dtype = torch.bfloat16 if computes_in_bf16(config.train, device) else torch.float32
    vision = build_vision(config.vision, device=device, dtype=dtype)
    config = replace(config, model=fitted(config.model, vision))
    if autoencoder is None:
        autoencoder = build_autoencoder(config.autoencoder, device=device, dtype=dtype)
    check_fits(autoencoder, config.model)
    check_caches(config.data, autoencoder, path=config.autoencoder.path)
    source = build_source(config.data, split="train", seed=config.seed)
    tokenizer = started.tokenizer if started else build_tokenizer(config)
    model, news = (started.model, news) if started else build_model(config, tokenizer)
    if config.model.vision_width != model.config.vision_width:
        check_new(config, "the projection of the vision encoder's features")
        model.give_vision(config.model, generator(config.seed, "vision"))
        news += "; the projection of the vision encoder's features is new"
    config = replace(config, model=model.config)
    model.train().to(device)
    rows = new_rows(config.model, tokenizer)
    if config.train.lora.rank:
        news += f"; {add_adapters(model, config.train, seed=config.seed, rows=rows)}"
    elif config.train.freeze == "text":
        freeze_text(model, rows=rows)
    pretrained = Pretrained(
        model=model,
        tokenizer=tokenizer,
        diffusion=config.diffusion,
        generate=config.generate,
        autoencoder=config.autoencoder,
        vision=config.vision,
    )
    parts = Parts(
        config=config,
        model=model,
        objective=build_objective(config.diffusion),
        autoencoder=autoencoder,
        loader=build_loader(config, source, tokenizer),
        device=device,
        vision=vision,
    )
    return Built(parts=parts, pretrained=pretrained, news=news)


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
    check_new(config, "what images pass through")
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


def check_new(config: RunConfig, what: str) -> None:
    """Refuse adapters alone where a model gets weights that only training can make good."""
    if config.train.lora.rank and config.train.lora.images == "adapters":
        raise ValueError(
            f"{what} is new in {config.start}, and adapters alone cannot train it; add --train.lora.images whole"
        )


def build_model(config: RunConfig, tokenizer: Tokenizer) -> tuple[MonoFormer, str]:
    """The network with new weights drawn from the seed, and what there is to say of it."""
    with torch.device("meta"):  # no memory, and no draw from the global generator
        model = MonoFormer(replace(config.model, vocabulary=config.model.vocabulary or tokenizer.size))
    model.to_empty(device="cpu")
    model.tie()
    model.initialize(generator(config.seed, "weights"))
    count = sum(p.numel() for p in model.parameters())
    return model, f"new weights: {count / 1e6:.1f}M parameters from seed {config.seed}"


def build_tokenizer(config: RunConfig) -> Tokenizer:
    """The run's tokenizer: named, already in its folder, or trained on its first documents and put there."""
    folder = config.path / "tokenizer"
    tokenizer = find_tokenizer(config) or train_tokenizer(config)
    if not config.tokenizer.path and not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
    return tokenizer


def find_tokenizer(config: RunConfig) -> Tokenizer | None:
    """The tokenizer that is named, or that the run's folder has; None where it is still to be trained."""
    if config.tokenizer.path:
        return Tokenizer.from_folder(config.tokenizer.path)
    folder = config.path / "tokenizer"
    return Tokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None


def train_tokenizer(config: RunConfig) -> Tokenizer:
    """A tokenizer of the text of the run's first documents."""
    source = build_source(config.data, split="train", seed=config.seed)
    documents = usable(source, TOKENIZER_DOCUMENTS)
    texts = [s.text for document in documents for s in document.segments if isinstance(s, Text)]
    if not any(texts):
        raise ValueError("the data holds no text to train a tokenizer on; give --tokenizer.path")
    return Tokenizer.train(texts, vocabulary=config.tokenizer.vocabulary)


def build_loader(config: RunConfig, source: Source, tokenizer: Tokenizer) -> Loader[Row, Batch]:
    """The stream of packed batches."""
    sequencer = build_sequencer(config.model, tokenizer, config.sequence)
    length = config.sequence.row

    def pack_window(documents: Numbered) -> tuple[list[Row], dict[int, BadDocument]]:
        layouts, bad = lay_out(sequencer, documents, length=length, seed=config.seed)
        return pack(layouts, length=length, seed=config.seed), bad

    def collate_rows(rows: list[Row]) -> Batch:
        return collate(rows, length=length, pad=tokenizer.pad)

    rows = config.train.pass_rows or config.train.rows
    return Loader(
        source,
        pack_window,
        collate_rows,
        window=config.sequence.window,
        rows=rows,
        skip_limit=config.train.skip_limit,
    )


def lay_out(
    sequencer: Sequencer, documents: Numbered, *, length: int, seed: int
) -> tuple[list[Layout], dict[int, BadDocument]]:
    """Documents as tokens; by number, what is wrong with those that have no layout or none that fits a row."""
    layouts: list[Layout] = []
    bad: dict[int, BadDocument] = {}
    for number, document in documents:
        try:
            layout = sequencer.document(document, number, seed=seed)
        except ValueError as error:
            bad[number] = BadDocument(str(error), cause="cannot be laid out")
            continue
        if len(layout) > length:
            say = f"{len(layout)} tokens, more than a row of {length}; raise --sequence.row (and --model.context)"
            bad[number] = BadDocument(say, cause="longer than a row")
        else:
            layouts.append(layout)
    return layouts, bad
