"""Small checkpoints in the official layout with random weights, and what the paper's equations make of them.

The second opinion for settings that no recording covers: the text path is transformers' own LLaMA, patches are cut by
`unfold`, positions and the sampler are written out. Knows nothing of our network.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from monoformer.randomness import generator

START, IMAGE, END = 88, 87, 89
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["MonoFormerForCausalLM"], "vocab_size": 90, "hidden_size": 32,
    "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 86, "hidden_act": "silu",
    "image_token_index": IMAGE, "patch_size": 2, "in_channels": 4, "image_size": 64, "learn_sigma": True,
    "decoder_t_embed": "add_before_image_tokens", "use_pos_embed": True, "add_pos_embed_each_layer": False,
    "use_adaln_final_layer": True, "use_bi_attn_img_tokens": True, "use_flash_attn": False, "rope_scaling": None,
}  # fmt: skip
STEPS, SCALE = 6, 2.5
PROMPT = [1, 23, 71, 5, 44, START, IMAGE, END]
NOTHING = [1, START, IMAGE, END]


class Reference:
    """A random checkpoint."""

    def __init__(self, **changes: Any) -> None:
        self.config = {**CONFIG, **changes}
        names = ("model_type", "architectures")
        shape = {name: value for name, value in self.config.items() if name not in names}
        with torch.random.fork_rng(devices=[]):
            self.llama = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="eager")).eval()
        random = generator(0, "official")
        self.weights = {
            name: _random(tuple(tensor.shape), random, around=float(name.endswith("norm.weight")))
            for name, tensor in self.llama.state_dict().items()
            if not (name == "lm_head.weight" and self.config["tie_word_embeddings"])
        }
        self.llama.load_state_dict(self.weights, strict=False)
        self.llama.tie_weights()
        for name, shape_of in self._image_side().items():
            self.weights[f"{name}.weight"] = _random(shape_of, random)
            self.weights[f"{name}.bias"] = _random(shape_of[:1], random)

    def _image_side(self) -> dict[str, tuple[int, int]]:
        c, width = self.config, self.config["hidden_size"]
        patch = c["patch_size"] ** 2 * c["in_channels"]
        sides = {
            "x_embedder": (width, patch),
            "t_embedder.mlp.0": (width, 256),
            "t_embedder.mlp.2": (width, width),
            "final_layer.linear": (patch * (2 if c["learn_sigma"] else 1), width),
        }
        if c["decoder_t_embed"] == "adaln_before_decoder":
            sides["adaLN_module.1"] = (2 * width, width)
        else:
            sides |= {"t_projector.0": (width, width), "t_projector.2": (width, width)}
        modulated = c["use_adaln_final_layer"]
        sides["final_layer.adaLN_modulation.1" if modulated else "final_layer.mlp.1"] = (
            2 * width if modulated else width,
            width,
        )
        return sides

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One of the image side's layers."""
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def time(self, t: int) -> Tensor:
        """The time embedding (D,)."""
        rates = [10_000 ** (-k / 128) for k in range(128)]
        wave = torch.tensor([math.cos(t * r) for r in rates] + [math.sin(t * r) for r in rates])
        return self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", wave)))

    def positions(self, side: int) -> Tensor:
        """(P, D): sines and cosines of the column, then of the row."""
        quarter = self.config["hidden_size"] // 4
        rates = [10_000 ** (-k / quarter) for k in range(quarter)]

        def wave(place: int) -> list[float]:
            return [math.sin(place * r) for r in rates] + [math.cos(place * r) for r in rates]

        return torch.tensor([wave(column) + wave(row) for row in range(side) for column in range(side)])

    @torch.no_grad()
    def run(self, ids: list[int], x: Tensor | None = None, t: int = 0) -> tuple[Tensor, Tensor]:
        """Logits (T, V) of a sequence, and the prediction (C, h, w) for its noised image x at index t."""
        c, time, tokens = self.config, self.time(t), self.llama.get_input_embeddings()(torch.tensor(ids))
        if x is None:
            return self.llama(inputs_embeds=tokens[None]).logits[0], torch.empty(0)
        patch, at = c["patch_size"], ids.index(IMAGE)
        patches = self.linear("x_embedder", F.unfold(x[None], patch, stride=patch)[0].T)
        positions = self.positions(x.shape[-1] // patch) if c["use_pos_embed"] else torch.zeros(patches.shape)
        patches = patches + positions
        before = [tokens[:at]]
        if c["decoder_t_embed"] == "adaln_before_decoder":
            shift, scale = self.linear("adaLN_module.1", F.silu(time)).chunk(2)
            patches = patches * (1 + scale) + shift
        else:
            before.append(self.linear("t_projector.2", F.gelu(self.linear("t_projector.0", time)))[None])
        start = sum(map(len, before))
        span = slice(start, start + len(patches))
        sequence = torch.cat([*before, patches, tokens[at + 1 :]])
        visible = torch.ones(len(sequence), len(sequence)).tril()
        if c["use_bi_attn_img_tokens"]:
            visible[span, span] = 1
        hidden = self._transformer(sequence, visible, span, positions)
        logits = self.llama.lm_head(hidden)
        return logits, self._prediction(hidden[span], time, x)

    def _transformer(self, sequence: Tensor, visible: Tensor, span: slice, positions: Tensor) -> Tensor:
        added = torch.zeros(sequence.shape)
        added[span] = positions
        again = self.llama.model.layers[1:] if self.config["add_pos_embed_each_layer"] else []
        hooks = [layer.register_forward_pre_hook(lambda _, args: (args[0] + added, *args[1:])) for layer in again]
        mask = torch.where(visible.bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
        hidden: Tensor = self.llama.model(inputs_embeds=sequence[None], attention_mask=mask).last_hidden_state[0]
        for hook in hooks:
            hook.remove()
        return hidden

    def _prediction(self, hidden: Tensor, time: Tensor, x: Tensor) -> Tensor:
        if self.config["use_adaln_final_layer"]:
            shift, scale = self.linear("final_layer.adaLN_modulation.1", F.silu(time)).chunk(2)
            deviation, mean = torch.std_mean(hidden, dim=1, correction=0, keepdim=True)
            hidden = (hidden - mean) / (deviation**2 + 1e-6).sqrt() * (1 + scale) + shift
        else:
            hidden = hidden + self.linear("final_layer.mlp.1", F.silu(time))
        flat, patch = self.linear("final_layer.linear", hidden), self.config["patch_size"]
        channels_first = flat.unflatten(1, (patch**2, -1)).transpose(1, 2).flatten(1)
        return F.fold(channels_first.T[None], x.shape[-2:], patch, stride=patch)[0]

    def guided(self, x: Tensor, t: int) -> Tensor:
        """The prediction for PROMPT with the first three channels guided away from NOTHING's."""
        found, plain = self.run(PROMPT, x, t)[1].clone(), self.run(NOTHING, x, t)[1]
        found[:3] = plain[:3] + SCALE * (found[:3] - plain[:3])
        return found

    def ddim(self, x: Tensor) -> Tensor:
        """STEPS steps of DDIM with eta 0 and guidance."""
        kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0).tolist()
        times = [round(i * 999 / (STEPS - 1)) for i in range(STEPS)]
        for number in reversed(range(STEPS)):
            a, before = kept[times[number]], kept[times[number - 1]] if number else 1.0
            eps = self.guided(x, times[number])[: len(x)]
            x = math.sqrt(before) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - before) * eps
        return x

    def write(self, folder: Path, *, recorded: bool = True) -> Path:
        """The checkpoint as its own code would save it, with a recording of everything but the loss."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        save_file(self.weights, folder / "model.safetensors")
        if recorded:
            save_file(self.record(), folder / "expected.safetensors")
            special = {"bos": 1, "eos": 2, "pad": 86, "image": IMAGE, "image_start": START, "image_end": END}
            fixture = {"special_tokens": special, "cfg_scale": SCALE}
            (folder / "fixture.json").write_text(json.dumps(fixture), encoding="utf-8")
        return folder

    def record(self) -> dict[str, Tensor]:
        """Inputs and outputs under the names of the fixture."""
        side = self.config["image_size"] // 8
        x = torch.randn((self.config["in_channels"], side, side), generator=generator(0, "x"))
        ids, words = [*PROMPT, 33, 2], [1, 9, 80, 23, 2, 3, 4]
        logits, prediction = self.run(ids, x, 640)
        tensors = {
            "text.input_ids": torch.tensor(words), "text.logits": self.run(words)[0],
            "t2i0.input_ids": torch.tensor(ids), "t2i0.x_t": x, "t2i0.t": torch.tensor(640), "t2i0.logits": logits,
            "t2i0.model_output": prediction, "cfg.cond_input_ids": torch.tensor(PROMPT),
            "cfg.uncond_input_ids": torch.tensor(NOTHING), "cfg.x_t": x, "cfg.t": torch.tensor(500),
            "cfg.model_output": self.guided(x, 500), f"ddim{STEPS}.x_T": x, f"ddim{STEPS}.sample": self.ddim(x),
        }  # fmt: skip
        return {name: tensor[None].clone() for name, tensor in tensors.items()}


def _random(shape: tuple[int, ...], random: torch.Generator, *, around: float = 0.0) -> Tensor:
    deviation = 0.2 if len(shape) == 1 else shape[1] ** -0.5
    return around + deviation * torch.randn(shape, generator=random)
