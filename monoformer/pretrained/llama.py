"""Language models of the LLaMA family, read from Hugging Face's layout into our network and written back.

Knows the layout from `llama_layout`. Invariants: no weight is in memory twice; the logits of the old vocabulary are
those of `transformers`; old rows of the vocabulary keep their bits.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoformer.config.model import ModelConfig
from monoformer.files import whole_folder
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained.llama_layout import ARCHITECTURES, ROWS, describe, hugging_face_name, text_side
from monoformer.pretrained.recipe import Recipe
from monoformer.pretrained.weights import (
    Weights,
    find_folder,
    read_description,
    refuse_official,
    save_weights,
)
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LoadedLlama:
    """A language model in our network, its image side newly drawn."""

    model: MonoFormer
    tokenizer: Tokenizer
    loaded: int
    """Number of tensors that the checkpoint gave."""
    new: tuple[str, ...]
    """Names of the tensors that it does not hold."""
    new_rows: int
    """Rows that the vocabulary grew by."""

    @property
    def news(self) -> str:
        """What was loaded and what is new, in one line."""
        new = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in self.new)
        rows = f"{self.model.config.vocabulary - self.new_rows} rows of the vocabulary and {self.new_rows} new ones"
        return f"{self.loaded} tensors loaded, {rows}; {len(self.new)} tensors new ({', '.join(new)})"


def load_llama(
    folder: str | Path,
    *,
    image_side: ModelConfig,
    seed: int,
    tokenizer: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedLlama:
    """The language model in a folder or of a hub name, with the image side and the context of `image_side`, drawn from
    `seed`.

    Its tokenizer is the folder's unless `tokenizer` names another. Image tokens take rows of the vocabulary that the
    tokenizer leaves over, else new ones. Raises ValueError for what is damaged or cannot be honoured.
    """
    loaded, recipe = read_llama(folder, image_side=image_side, seed=seed, tokenizer=tokenizer)
    recipe.fill(device=device, dtype=dtype).eval()
    return loaded


def read_llama(
    folder: str | Path, *, image_side: ModelConfig, seed: int, tokenizer: str = ""
) -> tuple[LoadedLlama, Recipe]:
    """What `load_llama` gives, but for the weights, and how the network gets them."""
    folder = find_folder(folder)
    description = read_description(folder)
    kind = description.get("model_type")
    refuse_official(folder, description)
    try:
        config = text_side(read_llama_config(folder, kind=kind), image_side=image_side)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be loaded: {error}") from None
    weights, own_tokenizer = Weights(folder), Tokenizer.from_folder(tokenizer or folder)
    new_rows = max(0, own_tokenizer.size - config.vocabulary)
    before = config.vocabulary if new_rows else 0
    config = replace(config, vocabulary=config.vocabulary + new_rows, text_vocabulary=before)
    with torch.device("meta"):
        model = MonoFormer(config)
    text = {name: known for name, _ in model.named_parameters() if (known := hugging_face_name(name))}
    spare = ("rotary_emb.inv_freq", *(["lm_head.weight"] if config.tie_embeddings else []))
    weights.check_names(set(text.values()), spare=spare, kind="plain language model of its kind")

    def read(name: str, known: str) -> Tensor:
        whole, more = model.get_parameter(name).shape, new_rows if name in ROWS else 0
        tensor = weights.read(known, shape=torch.Size((whole[0] - more, *whole[1:])), dtype=torch.float32)
        return grown(tensor, more, generator(seed, "vocabulary", name)) if more else tensor

    new = tuple(name for name, _ in model.named_parameters() if name not in text)
    reads = {name: partial(read, name, known) for name, known in text.items()}
    recipe = Recipe(model=model, read=reads, new={"weights": new}, seed=seed)
    return LoadedLlama(model=model, tokenizer=own_tokenizer, loaded=len(text), new=new, new_rows=new_rows), recipe


@torch.no_grad()
def grown(rows: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`rows` (V, D) and `count` new ones: normal around the mean of the old with their deviation, column by column."""
    deviation, mean = torch.std_mean(rows.float(), dim=0)
    noise = torch.randn((count, rows.shape[1]), generator=random).to(rows.device)
    return torch.cat([rows, (mean + deviation * noise).to(rows.dtype)])


def export_llama(folder: str | Path, model: MonoFormer, tokenizer: Tokenizer) -> None:
    """Write the text path as a plain Hugging Face folder, which AutoModelForCausalLM reads and gives the same logits.

    The image tokens keep their rows, so that the tokenizer and the logits are whole, and a run can start from the
    folder again. Raises ValueError when the folder is not empty or no architecture of Hugging Face's fits.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors = {known: named[name] for name in named if (known := hugging_face_name(name))}
    described: dict[str, Any] = describe(model.config)
    ends = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.backend.pad_token_id,
    }
    kind = str(model.tokens.weight.dtype).removeprefix("torch.")
    with whole_folder(folder) as temporary:
        text = json.dumps({**described, **ends, "torch_dtype": kind}, indent=2)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        save_weights(temporary, tensors)
        tokenizer.save(temporary)


def read_llama_config(folder: Path, *, kind: object) -> Any:
    """The folder's `transformers` configuration, which knows the defaults of every version; `kind`: its model_type."""
    from transformers import AutoConfig

    if str(kind) not in ARCHITECTURES:
        raise ValueError(f"its model_type is {kind!r}; of language models {', '.join(ARCHITECTURES)} can be loaded")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # whatever its checks raise
        raise ValueError(f"its config.json contradicts itself: {str(error).strip().splitlines()[-1]}") from None
