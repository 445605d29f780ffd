"""export: a model folder into the layout of others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from monoformer.cli.options import parse
from monoformer.pretrained import export_llama, find_folder, load_pretrained


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write the language model inside a model folder as a plain Hugging Face folder."""

    model: Annotated[str, tyro.conf.Positional]
    """Model folder or hub name."""
    out: Annotated[Path, tyro.conf.Positional]
    """New folder; transformers' AutoModelForCausalLM reads it."""


def export(arguments: list[str]) -> None:
    """Write the text path as a Hugging Face language model: monoformer export MODEL OUT"""
    options = parse(_Export, arguments, command="export")
    pretrained = load_pretrained(find_folder(options.model))
    export_llama(options.out, pretrained.model, pretrained.tokenizer)
    print(options.out)
