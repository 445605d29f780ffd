"""The layout of Hugging Face's LLaMA family: names of tensors and the text side of config.json, there and back.

LLaMA, Mistral, Qwen2 and Qwen3 differ in biases, QK-norm and head width only. What our mask or cache cannot honour is
refused by name. Knows nothing of files: other layouts that hold a LLaMA read its part with these maps.
"""

import math
import re
from dataclasses import replace
from typing import Any, Literal, assert_never

from monoformer.config.model import LinearScaling, Llama3Scaling, ModelConfig, NoScaling, RopeScaling, YarnScaling

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""What is read, by the model_type of config.json."""

ENDS = {
    "tokens.weight": "model.embed_tokens.weight",
    "transformer.norm.weight": "model.norm.weight",
    "text_head.weight": "lm_head.weight",
}
LAYER = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
ROWS = ("tokens.weight", "text_head.weight")
"""Matrices with a row for every entry of the vocabulary."""

_LAYER_NAME = re.compile(r"transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)")


def hugging_face_name(name: str) -> str | None:
    """Hugging Face's name of one of our parameters; None for the image side."""
    if name in ENDS:
        return ENDS[name]
    found = _LAYER_NAME.fullmatch(name)
    if found is None or found[2] not in LAYER:
        return None
    return f"model.layers.{found[1]}.{LAYER[found[2]]}.{found[3]}"


def text_side(config: Any, *, image_side: ModelConfig) -> ModelConfig:
    """The shape of a language model, from its `transformers` configuration, with the image side and context of ours.

    The context is never longer than the model's own. Raises ValueError, naming it, for what cannot be honoured.
    """
    _refuse(config)
    heads = config.num_attention_heads
    key_width = getattr(config, "head_dim", None) or 0
    biased: Literal["none", "qkv", "all"] = "all" if getattr(config, "attention_bias", False) else "none"
    context = min(image_side.context, config.max_position_embeddings)
    _check_window(config, context)
    return replace(
        image_side,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        key_width=0 if key_width * heads == config.hidden_size else key_width,
        mlp_width=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=context,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        rope_scaling=_read_scaling(config.rope_parameters, config.max_position_embeddings),
        norm_epsilon=config.rms_norm_eps,
        qk_norm=config.model_type == "qwen3",
        attention_bias="qkv" if config.model_type == "qwen2" else biased,
        tie_embeddings=config.tie_word_embeddings,
    )


def _refuse(config: Any) -> None:
    """Raise ValueError for a model that is not of the family, or departs from it."""
    kind, named = config.model_type, config.architectures or []
    if kind not in ARCHITECTURES or (named and ARCHITECTURES[kind].lower() not in map(str.lower, named)):
        raise ValueError(
            f"the architecture is {', '.join(named) or kind}; of language models those are loaded that transformers "
            f"calls {', '.join(ARCHITECTURES.values())}"
        )
    for name, right in (("hidden_act", "silu"), ("mlp_bias", False), ("quantization_config", None)):
        value = getattr(config, name, right)
        if value != right:
            raise ValueError(f"{name} is {value!r}, but only {right!r} can be loaded")


def _check_window(config: Any, context: int) -> None:
    """Our mask has no sliding window: a model with one serves as long as the context does not exceed it."""
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    unknown = layers - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(f"layer_types holds {min(unknown)!r}, which the mask cannot honour; choose another model")
    window = getattr(config, "sliding_window", None) if config.model_type != "llama" else None
    windowed = "sliding_attention" in layers or config.model_type == "mistral"
    if windowed and window is not None and context > window:
        raise ValueError(
            f"sliding_window is {window}, which the mask cannot honour in a context of {context} tokens; "
            f"give --model.context {window} or less"
        )


def _read_scaling(rope: dict[str, Any], longest: int) -> RopeScaling:
    """The rotary scaling in `rope_parameters`."""
    kind = rope.get("rope_type")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor is {rope['partial_rotary_factor']}, but only 1 can be loaded")
    match kind:
        case "default":
            return NoScaling()
        case "linear":
            return LinearScaling(factor=rope["factor"])
        case "llama3":
            return Llama3Scaling(
                factor=rope["factor"],
                low=rope["low_freq_factor"],
                high=rope["high_freq_factor"],
                original_context=rope["original_max_position_embeddings"],
            )
        case "yarn":
            original = rope["original_max_position_embeddings"]
            factor = rope.get("factor") or longest / original
            return YarnScaling(
                factor=factor,
                beta_fast=rope.get("beta_fast") or 32.0,
                beta_slow=rope.get("beta_slow") or 1.0,
                original_context=original,
                attention_factor=_yarn_amplitude(rope, factor),
                truncate=rope.get("truncate", True),
            )
        case _:
            raise ValueError(
                f"rope scaling {kind or 'by layer'!r} cannot be loaded (dynamic and longrope change with the length of "
                f"the text, but cached keys stay); default, linear, llama3 and yarn can"
            )


def _yarn_amplitude(rope: dict[str, Any], factor: float) -> float:
    """YaRN's factor of cosines and sines: as given, or 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22)."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        above, below = float(rope["mscale"]), float(rope["mscale_all_dim"])
        return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def describe(config: ModelConfig) -> dict[str, Any]:
    """The text side as the fields of a Hugging Face config.json; ValueError where no architecture has such a one.

    The rotary fields are in the older form, which old and new versions of transformers read.
    """
    match (config.qk_norm, config.attention_bias):
        case (True, "none" | "all"):
            kind = "qwen3"
        case (False, "qkv"):
            kind = "qwen2"
        case (False, "none" | "all"):
            kind = "llama"
        case _:
            raise ValueError(
                "no LLaMA-like architecture has both QK-norm and attention_bias = 'qkv'; train without one"
            )
    biases = {"attention_bias": config.attention_bias == "all"} if kind != "qwen2" else {}
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": _longest(config),
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _describe_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        **biases,
    }


def _longest(config: ModelConfig) -> int:
    """The context to write down: transformers 4 takes YaRN's factor from it, not from the field of that name."""
    match config.rope_scaling:
        case YarnScaling(factor=factor, original_context=original):
            return max(config.context, round(factor * original))
        case _:
            return config.context


def _describe_scaling(scaling: RopeScaling) -> dict[str, Any] | None:
    match scaling:
        case NoScaling():
            return None
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor=factor, low=low, high=high, original_context=original):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
                "original_max_position_embeddings": scaling.original_context,
            }
        case _:
            assert_never(scaling)
