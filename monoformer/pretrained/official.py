"""Checkpoints of the official MonoFormer code, read into our network: names, settings, tokenizer.

Its text path is a Hugging Face LLaMA, read with `llama_layout`. Around it lie its own names for the image side, fields
of config.json that choose between its variants, and four special tokens. Invariant: logits and predictions are those of
the official code; what it cannot run itself, or we cannot honour, is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange

from monoformer.config.autoencoder import AutoencoderConfig
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained.folders import Pretrained
from monoformer.pretrained.llama import read_llama_config
from monoformer.pretrained.llama_layout import hugging_face_name, text_side
from monoformer.pretrained.weights import Weights, find_folder, read_description, read_json
from monoformer.tokenizer import BOS, EOS, Tokenizer

DOWN = 8
"""Pixels along the side of one cell of its latents."""

AUTOENCODER = "stabilityai/sd-vae-ft-mse"
"""What its four-channel latents are of, times 0.18215, which is also that autoencoder's own scale."""

TIMES: dict[str, Literal["projected_token", "adaln_input"]] = {
    "add_before_image_tokens": "projected_token",
    "adaln_before_decoder": "adaln_input",
}
"""Ways in which the time enters, by `decoder_t_embed`."""

BROKEN_TIMES = ("add_before_decoder", "add_at_each_layer", "add_with_embed_at_each_layer")
"""Ways that the official code names but cannot run."""

IMAGE_SIDE = {
    "patches.linear": "x_embedder",
    "patches.modulation.linear": "adaLN_module.1",
    "time.input": "t_embedder.mlp.0",
    "time.output": "t_embedder.mlp.2",
    "time_token.input": "t_projector.0",
    "time_token.output": "t_projector.2",
    "image_head.linear": "final_layer.linear",
}
HEADS = {"dit": "final_layer.adaLN_modulation.1", "shift": "final_layer.mlp.1"}
"""Its name of `image_head.modulation.linear`, by the kind of image head."""

FIELDS = ("patch_size", "in_channels", "learn_sigma", "use_pos_embed", "use_adaln_final_layer")
"""What config.json must say beside `decoder_t_embed` and what every LLaMA's does."""

IMAGE_SIZE = 256
"""Side in pixels where neither config.json nor positions of patches say one, as its sampling script has it."""

TEXT_ROOM = 128
"""Tokens of text that must fit beside a picture; its code runs beyond max_position_embeddings."""

PAD, IMAGE, START, END = SPECIAL = ("<PAD>", "<image>", "<|im_start|>", "<|im_end|>")
"""Its special tokens, in the order of their ids."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token }}{% endif %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""How it lays out a conversation unless its cfg.json names another template."""


@dataclass(frozen=True, kw_only=True)
class LoadedOfficial:
    """An official checkpoint in our network."""

    pretrained: Pretrained
    tokenizer_from: str
    """Folder or hub name that the tokenizer came from; empty: there was none, so prompts are token numbers."""


def load_official(
    folder: str | Path,
    *,
    tokenizer: str = "",
    autoencoder: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> LoadedOfficial:
    """The official checkpoint in `folder` (or of that hub name); `dtype` None keeps that of its tensors.

    `tokenizer` and `autoencoder` are folders or hub names: of the tokenizer, if not the checkpoint's, and of the
    autoencoder, if not AUTOENCODER. ValueError for what is no such checkpoint, is damaged, or cannot be honoured.
    """
    folder = find_folder(folder)
    fields = read_description(folder)
    if fields.get("model_type") == "monoformer":
        raise ValueError(f"{folder} is a model folder already; use it as it is: monoformer generate {folder} PROMPT")
    model = load_network(folder, fields=fields, device=device, dtype=dtype)
    config = model.config
    own_tokenizer, tokenizer_from = _find_tokenizer(folder, tokenizer, fields=fields, rows=config.vocabulary)
    pretrained = Pretrained(
        model=model,
        tokenizer=own_tokenizer,
        diffusion=read_diffusion(config),
        generate=GenerateConfig(sampler="ddpm", steps=20, guidance=4.0),  # as its scripts sample
        autoencoder=AutoencoderConfig(path=autoencoder or (AUTOENCODER if config.channels == 4 else "")),
    )
    return LoadedOfficial(pretrained=pretrained, tokenizer_from=tokenizer_from)


def read_diffusion(config: ModelConfig) -> DDPMConfig:
    """How it was trained to denoise: linear betas, eps."""
    return DDPMConfig(variance="learned" if config.learned_variance else "fixed_large")


def load_network(
    folder: Path, *, fields: dict[str, Any], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> MonoFormer:
    """The network alone; `fields` are what the folder's config.json holds."""
    try:
        config = read_config(fields, read_llama_config(folder, kind=fields.get("model_type")))
    except ValueError as error:
        raise ValueError(f"{folder} cannot be loaded: {error}") from None
    weights = Weights(folder)
    with torch.device("meta"):
        model = MonoFormer(config)
    names = {name: official_name(name, config) for name, _ in model.named_parameters()}
    spare = ("rotary_emb.inv_freq", "model.pos_embed", *(["lm_head.weight"] if config.tie_embeddings else []))
    weights.check_names(set(names.values()), spare=spare, kind="official MonoFormer checkpoint")
    state = {
        name: weights.read(known, shape=model.get_parameter(name).shape, device=device, dtype=dtype)
        for name, known in names.items()
    }
    # its patches are channels first on the way in, channels last on the way out
    ours = rearrange(state["patches.linear.weight"], "D (C p q) -> D (p q C)", p=config.patch, q=config.patch)
    state["patches.linear.weight"] = ours.contiguous()
    if config.tie_embeddings:
        state["text_head.weight"] = state["tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie()
    return model.eval()


def official_name(name: str, config: ModelConfig) -> str:
    """The official name of one of our parameters."""
    found = hugging_face_name(name)
    if found is None:
        path, _, last = name.rpartition(".")
        found = f"{IMAGE_SIDE.get(path) or HEADS[config.image_head]}.{last}"
    return found


def read_config(fields: dict[str, Any], llama: Any) -> ModelConfig:
    """Our shape, from its config.json as it is and as `transformers` reads it; ValueError for what we cannot honour."""
    _refuse(fields)
    size = fields.get("image_size") or IMAGE_SIZE
    patch, side = fields["patch_size"], size // DOWN
    if side < patch or side % patch:
        raise ValueError(
            f"image_size is {size}, a latent of {side}x{side}, which does not divide into patches of "
            f"patch_size = {patch}"
        )
    positions: Literal["none", "sincos", "every_layer"] = "none"
    if fields["use_pos_embed"]:
        positions = "every_layer" if fields.get("add_pos_embed_each_layer") else "sincos"
    image_side = ModelConfig(
        patch=patch,
        channels=fields["in_channels"],
        down=DOWN,
        image_sizes=((side * DOWN, side * DOWN),),
        time=TIMES[fields["decoder_t_embed"]],
        image_positions=positions,
        image_head="dit" if fields["use_adaln_final_layer"] else "shift",
        image_attention="two-way" if fields.get("use_bi_attn_img_tokens") else "causal",
        learned_variance=bool(fields["learn_sigma"]),
        context=max(llama.max_position_embeddings, (side // patch) ** 2 + TEXT_ROOM),
    )
    llama.max_position_embeddings = image_side.context
    llama.architectures = None  # a LLaMA under the name of MonoFormer
    return text_side(llama, image_side=image_side)


def _refuse(fields: dict[str, Any]) -> None:
    """Raise ValueError for what is no official checkpoint or has a setting that nobody can honour."""
    if "decoder_t_embed" not in fields:
        raise ValueError(
            "its config.json has no decoder_t_embed, so it is no official MonoFormer checkpoint; a run starts from a "
            "plain language model with monoformer train PRESET --from FOLDER"
        )
    time = fields["decoder_t_embed"]
    if time in BROKEN_TIMES:
        raise ValueError(
            f"decoder_t_embed is {time!r}, which cannot run in the official code either: it adds a vector six times as "
            f"wide as the hidden states; {' and '.join(TIMES)} can be loaded"
        )
    if time not in TIMES:
        raise ValueError(f"decoder_t_embed is {time!r}, but only {' and '.join(TIMES)} can be loaded")
    given = [name for name in ("image_size", "image_token_index") if fields.get(name) is not None]
    needed = {*FIELDS, *given, *(["image_size"] if fields.get("use_pos_embed") else [])}
    missing = [name for name in sorted(needed) if not isinstance(fields.get(name), int)]
    if missing:
        raise ValueError(f"its config.json lacks {', '.join(missing)}, or has no number or truth value there")
    if fields.get("vision_encoder"):
        raise ValueError(
            f"vision_encoder is {fields['vision_encoder']!r}: checkpoints that read pictures through another encoder "
            f"cannot be loaded"
        )


def _find_tokenizer(folder: Path, given: str, *, fields: dict[str, Any], rows: int) -> tuple[Tokenizer, str]:
    """The tokenizer and where it came from: as given, else the folder's, else one of token numbers.

    The official code keeps its averaged weights in a folder `ema` inside the one that has the tokenizer.
    """
    homes = [folder, *([folder.resolve().parent] if folder.resolve().name == "ema" else [])]
    kept = [home for home in homes if (home / "tokenizer.json").is_file() or (home / "tokenizer.model").is_file()]
    source = given or (str(kept[0]) if kept else "")
    if not source:
        return _number_tokenizer(fields, rows=rows), ""
    template = CHAT_TEMPLATE
    for settings in (home / "cfg.json" for home in homes):
        if settings.is_file() and (chosen := read_json(settings)).get("use_chat_template"):
            template = str(chosen.get("chat_template") or template)
    tokenizer = Tokenizer.from_folder(source, adapt=lambda backend: _adapted(backend, template))
    if tokenizer.patch != fields.get("image_token_index") or tokenizer.size > rows:
        raise ValueError(
            f"the tokenizer in {source} has {tokenizer.size} entries and {IMAGE} at {tokenizer.patch}, but the "
            f"checkpoint {rows} and image_token_index = {fields.get('image_token_index')}; give its own"
        )
    return tokenizer, source


def _adapted(backend: Any, template: str) -> Any:
    """The tokenizer with the official special tokens, added at its end where it lacks them, known by our names."""
    backend.backend_tokenizer.add_special_tokens(list(SPECIAL))
    ends = {"bos_token": backend.bos_token, "eos_token": backend.eos_token, "unk_token": backend.unk_token}
    return _named(backend.backend_tokenizer, template, **ends)


def _number_tokenizer(fields: dict[str, Any], *, rows: int) -> Tokenizer:
    """For checkpoints without one: the text of a token is its number, and any other word is unknown."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    ends = {BOS: fields.get("bos_token_id", 1), EOS: fields.get("eos_token_id", 2)}
    ids = {token: end[0] if isinstance(end, list) else end for token, end in ends.items()}
    ids |= {token: (fields.get("image_token_index") or 0) - 1 + place for place, token in enumerate(SPECIAL)}
    free = sorted({*range(rows)} - {*ids.values()})
    if len(free) + len(ids) != rows:
        raise ValueError(
            f"there is no tokenizer, and its config.json puts the special tokens at {ids} of {rows} rows, which cannot "
            f"be; give --tokenizer"
        )
    pad = fields.get("pad_token_id")
    if pad is not None and pad not in (ids[PAD], *ends.values()):
        raise ValueError(
            f"there is no tokenizer, and pad_token_id = {pad} of its config.json is not before image_token_index = "
            f"{ids[IMAGE]}, as the official code adds its tokens, so which one opens an image cannot be told; give "
            f"--tokenizer"
        )
    texts = {number: token for token, number in ids.items()} | {free[0]: "<unk>"}
    words = {texts.get(number, str(number)): number for number in range(rows)}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
    return Tokenizer(_named(backend, CHAT_TEMPLATE, bos_token=BOS, eos_token=EOS, unk_token="<unk>"))


def _named(backend: Any, template: str, **ends: Any) -> Any:
    """A `transformers` tokenizer under whose names `Tokenizer` finds the image tokens; the time has no token."""
    from transformers import PreTrainedTokenizerFast

    names = {"boi_token": START, "eoi_token": END, "image_token": IMAGE, "time_token": IMAGE}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, model_specific_special_tokens=names, chat_template=template,
        clean_up_tokenization_spaces=False, **{name: token for name, token in ends.items() if token is not None},
    )  # fmt: skip
