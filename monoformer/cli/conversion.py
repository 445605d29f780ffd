"""export and convert: a model folder into the layout of others, and theirs into ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monoformer.card import write_converted_card
from monoformer.cli.options import DTYPES, Precision, parse
from monoformer.pretrained import (
    export_llama,
    load_official,
    load_pretrained,
    read_folder_config,
    save_pretrained,
)


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write the language model inside a model folder as a plain Hugging Face folder."""

    model: Annotated[str, tyro.conf.Positional]
    """Model folder or hub name."""
    out: Annotated[Path, tyro.conf.Positional]
    """New folder; transformers' AutoModelForCausalLM reads it."""
    precision: Precision = "auto"
    """Of the weights that are written; auto: that of the model folder's."""


def export(arguments: list[str]) -> None:
    """Write the text path as a Hugging Face language model: monoformer export MODEL OUT"""
    options = parse(_Export, arguments, command="export")
    pretrained = load_pretrained(options.model, dtype=DTYPES[options.precision])
    export_llama(options.out, pretrained.model, pretrained.tokenizer)
    print(options.out)


@dataclass(frozen=True, kw_only=True)
class _Convert:
    """Write a checkpoint of the official MonoFormer code as a model folder."""

    official: Annotated[str, tyro.conf.Positional]
    """Its folder (with safetensors weights) or hub name."""
    out: Annotated[Path, tyro.conf.Positional]
    """The model folder to write."""
    tokenizer: str = ""
    """Folder or hub name of its tokenizer, where the checkpoint holds none: the language model's that it began as."""
    autoencoder: str = ""
    """Folder or hub name of the autoencoder of its latents; if not given and they have 4 channels, Stable Diffusion's
    (stabilityai/sd-vae-ft-mse)."""


def convert(arguments: list[str]) -> None:
    """Bring in a checkpoint of the official MonoFormer code: monoformer convert OFFICIAL OUT [--tokenizer NAME]"""
    options = parse(_Convert, arguments, command="convert")
    loaded = load_official(options.official, tokenizer=options.tokenizer, autoencoder=options.autoencoder)
    pretrained, numbers = loaded.pretrained, not loaded.tokenizer_from
    card = write_converted_card(options.out.name, pretrained.model.config, numbers=numbers)
    save_pretrained(options.out, pretrained, card=card)
    if numbers:
        print(
            f"{options.official} holds no tokenizer, so prompts are token numbers, such as '5 17 230'; "
            f"for words, convert again with --tokenizer NAME"
        )
    print(_of_pictures(options.out, pretrained.model.config.channels))
    print(options.out)


def _of_pictures(folder: Path, channels: int) -> str:
    """What makes pictures of the converted folder's latents, and whether it stands in the folder."""
    named = read_folder_config(folder).autoencoder.path
    latents = f"it draws latents of {channels} channels"
    if not named:
        return f"{latents}; for pictures, convert again with --autoencoder NAME, or draw with it"
    if (folder / named).is_dir():
        return f"{latents}, which the autoencoder in the folder makes pictures of"
    return (
        f"{latents}, which {named} makes pictures of. It is not in the folder: the first picture fetches it from the "
        f"hub; without a network, convert again with --autoencoder FOLDER, or draw with it"
    )
