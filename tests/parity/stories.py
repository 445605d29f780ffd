"""A real small language model, stories260K in llama2.c's first layout, as a Hugging Face folder.

The weights are 7 integers and fp32 matrices one kind after the other; rotary pairs lie side by side there and half a
head apart in Hugging Face's layout. The vocabulary is a list of pieces with scores, SentencePiece's without its ▁.
"""

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend
from torch import Tensor
from transformers import PreTrainedTokenizerFast


def write_folder(weights: Path, vocabulary: Path, folder: Path) -> None:
    """Write the Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = read_weights(weights)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    read_tokenizer(vocabulary, config["vocab_size"]).save_pretrained(folder)


def read_weights(path: Path) -> tuple[dict, dict[str, Tensor]]:  # type: ignore[type-arg]
    """The configuration and tensors by Hugging Face's names."""
    data = path.read_bytes()
    width, mlp_width, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", data[:28])
    numbers = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    at = 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = int(torch.tensor(shape).prod())
        at += count
        return numbers[at - count : at].view(shape).clone()

    kv_width = width // heads * kv_heads
    stacks = {"embed": take(vocabulary, width), "input_layernorm": take(layers, width)}
    stacks["self_attn.q_proj"] = take(layers, heads, width // heads // 2, 2, width)
    stacks["self_attn.k_proj"] = take(layers, kv_heads, width // heads // 2, 2, width)
    stacks["self_attn.v_proj"], stacks["self_attn.o_proj"] = take(layers, kv_width, width), take(layers, width, width)
    stacks["post_attention_layernorm"] = take(layers, width)
    stacks["mlp.gate_proj"], stacks["mlp.down_proj"] = take(layers, mlp_width, width), take(layers, width, mlp_width)
    stacks["mlp.up_proj"] = take(layers, mlp_width, width)
    tensors = {"model.embed_tokens.weight": stacks.pop("embed"), "model.norm.weight": take(width)}
    assert at + context * width // heads == len(numbers), "rotary tables, and no head: it is tied"
    for name, stack in stacks.items():
        for layer, matrix in enumerate(stack):
            if matrix.ndim == 4:  # (heads, pairs, 2, width): first numbers of all pairs, then the second ones
                matrix = matrix.transpose(1, 2).reshape(-1, width)
            tensors[f"model.layers.{layer}.{name}.weight"] = matrix.contiguous()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": mlp_width, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary, "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return config, tensors


def read_tokenizer(path: Path, count: int) -> PreTrainedTokenizerFast:
    """The tokenizer: pairs of pieces merge in the order of the scores of what they make."""
    data, at = path.read_bytes(), 4
    pieces: list[str] = []
    for _ in range(count):
        length = struct.unpack("i", data[at + 4 : at + 8])[0]
        pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
        at += 8 + length
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    known = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:]  # by falling score
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    backend = Backend(models.BPE(known, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
