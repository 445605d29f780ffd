"""Language models of the LLaMA family: the same logits as in transformers, in and out again."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from monoformer.autoencoder import Pixels
from monoformer.batch import Layout
from monoformer.config.diffusion import FlowConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.diffusion.objectives import build_objective
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, read
from monoformer.generate.session import Request
from monoformer.model.monoformer import MonoFormer
from monoformer.pretrained import LoadedLlama, Pretrained, export_llama, load_llama, load_pretrained, save_pretrained
from monoformer.pretrained.llama_layout import describe
from monoformer.randomness import generator
from monoformer.tokenizer import Tokenizer
from tests import tiny
from tests.parity.stories import write_folder
from tests.parity.tokenizers import plain_tokenizer

VOCABULARY = 280
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 600, "head_dim": 12,
    "bos_token_id": 0, "eos_token_id": 1, "attn_implementation": "sdpa",
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SHARP_YARN = {**YARN, "attention_factor": 1.3, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False}

FAMILY: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-biased": LlamaConfig(**SHAPE, attention_bias=True),
    "llama-linear": LlamaConfig(**SHAPE, rope_scaling={"type": "linear", "factor": 2.5}),
    "llama-3": LlamaConfig(**SHAPE, rope_theta=500_000.0, rope_scaling={"rope_type": "llama3", **LLAMA3}),
    "llama-yarn": LlamaConfig(**SHAPE, rope_scaling=YARN),
    "mistral": MistralConfig(**{**SHAPE, "head_dim": 16}, rope_theta=1e6, sliding_window=4096),
    "qwen2": Qwen2Config(**SHAPE, rope_theta=1e6, tie_word_embeddings=True, rms_norm_eps=1e-6),
    "qwen2-yarn": Qwen2Config(**SHAPE, rope_scaling=SHARP_YARN),
    "qwen3": Qwen3Config(**{**SHAPE, "head_dim": 32}, rope_theta=1e6),
}


@torch.no_grad()
def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A transformers model with every weight random."""
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    random = generator(seed, "family")
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random)
        parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
    return model


def save(folder: Path, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The same with its tokenizer in a folder; `options` of save_pretrained."""
    model = build(config)
    model.save_pretrained(folder, **options)
    plain_tokenizer(VOCABULARY).save_pretrained(folder)
    return model


def load(folder: Path, *, seed: int = 0, **image_side: Any) -> LoadedLlama:
    return load_llama(folder, image_side=ModelConfig(**{"context": 512, "patch": 4, **image_side}), seed=seed)


def tokens(count: int = 500) -> Tensor:
    return torch.randint(VOCABULARY, (2, count), generator=generator("ids"))


@torch.no_grad()
def our_logits(model: MonoFormer, ids: Tensor) -> Tensor:
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    return model.text(model(ids, torch.arange(length).expand_as(ids), mask))


@torch.no_grad()
def their_logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids).logits
    return logits


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-5 of the largest magnitude."""
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < 1e-5, f"{error:.1e} of the largest magnitude"


@pytest.mark.parametrize("kind", FAMILY)
def test_logits_are_those_of_transformers_and_export_gives_them_back(kind: str, tmp_path: Path) -> None:
    theirs = save(tmp_path / "theirs", FAMILY[kind])
    loaded = load(tmp_path / "theirs")
    ids = tokens()
    expected = their_logits(theirs, ids)
    assert_close(our_logits(loaded.model, ids)[..., :VOCABULARY], expected)

    export_llama(tmp_path / "ours", loaded.model, loaded.tokenizer)
    back, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    logits = their_logits(back, ids)
    assert_close(logits, our_logits(loaded.model, ids))
    assert_close(logits[..., :VOCABULARY], expected)
    text = "of what <boi> was seen </s>"
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").encode("of what") == loaded.tokenizer.encode("of what")
    again = load(tmp_path / "ours")
    assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    assert again.new_rows == 0
    assert again.model.config == replace(loaded.model.config, text_vocabulary=0)  # it does not grow a second time
    for (name, one), two in zip(again.model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(one, two), name


@torch.no_grad()
@pytest.mark.parametrize("kind", FAMILY)
def test_cached_equals_uncached(kind: str, tmp_path: Path) -> None:
    save(tmp_path, FAMILY[kind])
    model = load(tmp_path).model
    ids = tokens(90)[:1]
    network = Network(
        model=model, objective=build_objective(FlowConfig()), autoencoder=Pixels(), cache=model.cache(2, 100)
    )
    context, hidden = Context(1), []
    for first, last in [(0, 70), (70, 88), (88, 89), (89, 90)]:
        layout = Layout(next_position=context.position)
        for token in ids[0, first:last].tolist():
            layout.add_token(token)
        hidden.append(read(network, [context], [layout])[0])
    assert_close(model.text(torch.stack(hidden)), our_logits(model, ids)[0, [69, 87, 88, 89]])


def test_shards_and_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "one", FAMILY["qwen3"])
    save(tmp_path / "many", FAMILY["qwen3"], max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load(tmp_path / "one").model, load(tmp_path / "many").model
    for (name, a), b in zip(one.named_parameters(), many.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_bf16_checkpoint_of_an_older_form_is_read_in_fp32(tmp_path: Path) -> None:
    save(tmp_path, FAMILY["llama-tied"])
    held = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    save_file(held, tmp_path / "model.safetensors")
    model = load(tmp_path).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.tokens.weight[:VOCABULARY].bfloat16(), held["model.embed_tokens.weight"])
    assert model.text_head.weight is model.tokens.weight


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_vocabulary_grows_and_old_rows_keep_their_bits(kind: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, FAMILY[kind])
    loaded = load(tmp_path)
    special = [loaded.tokenizer.boi, loaded.tokenizer.eoi, loaded.tokenizer.patch, loaded.tokenizer.time]
    assert special == list(range(VOCABULARY, VOCABULARY + 4))
    assert loaded.new_rows == loaded.tokenizer.size - VOCABULARY == 7, "image tokens and roles"
    heads = {"tokens": theirs.get_input_embeddings(), "text_head": theirs.get_output_embeddings()}
    for name, module in heads.items():
        grown, old = getattr(loaded.model, name).weight, module.weight  # type: ignore[union-attr]
        assert torch.equal(grown[:VOCABULARY], old)
        distance = ((grown[VOCABULARY:] - old.mean(0)).abs() / old.std(0)).detach()  # type: ignore[operator]
        assert 0.5 < float(distance.mean()) < 1.1, "normal around the mean: 0.8 deviations away"
    ids = tokens(40)
    grown_logits = our_logits(loaded.model, ids)[..., :VOCABULARY]
    loaded.model.text_head.weight = torch.nn.Parameter(loaded.model.text_head.weight[:VOCABULARY])
    assert torch.equal(grown_logits, our_logits(loaded.model, ids))


def test_spare_rows_are_used_before_new_ones(tmp_path: Path) -> None:
    save(tmp_path, FAMILY["llama"])
    plain_tokenizer(VOCABULARY - 5).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.tokenizer.boi == VOCABULARY - 5
    assert loaded.new_rows == 2
    assert torch.equal(
        loaded.model.tokens.weight[:VOCABULARY], load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_the_image_side_comes_from_the_seed_and_is_reported(tmp_path: Path) -> None:
    save(tmp_path, FAMILY["llama"])
    one, same, other = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    drawn = {"time.input.weight", "patches.linear.weight", "transformer.blocks.1.modulation.linear.weight"}
    assert drawn < set(one.new)
    assert not any("attention" in name or "mlp" in name for name in one.new)
    for (name, a), b, c in zip(
        one.model.named_parameters(), same.model.parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        changes = name in ("tokens.weight", "text_head.weight") or (name in one.new and a.ndim == 2 and bool(a.any()))
        assert torch.equal(a, c) != changes, name
    assert "transformer.blocks.*.modulation.linear.weight" in one.news
    assert "7 new ones" in one.news


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' cannot be loaded"),
        (
            {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 6, "short_factor": [1.0] * 6}},
            "'longrope' cannot be loaded",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": "mistral", "sliding_window": 128}, "sliding_window is 128, .* context of 512 tokens"),
        ({"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": True}, "architecture is Llama"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": "no-such-model"}, "model_type is 'no-such-model'"),
        ({"architectures": ["MonoFormerForCausalLM"]}, "architecture is MonoFormerForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"attention_bias": True}, r"lacks model\.layers\.0\.self_attn\.k_proj\.bias and 7 more"),
        ({"num_hidden_layers": 1}, r"also holds model\.layers\.1\.input_layernorm\.weight and 8 more"),
        ({"vocab_size": 281}, r"model\.embed_tokens\.weight .* by its config\.json should be"),
        ({"intermediate_size": 96}, r"mlp\..*_proj\.weight .* by its config\.json should be"),
        ({"num_attention_heads": 5}, "contradicts itself: .*number of attention heads"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path, FAMILY["llama"])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | changes
    if "rope_scaling" in changes or "partial_rotary_factor" in changes:
        del config["rope_parameters"]
    if changes.get("model_type") == "mistral":
        del config["architectures"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_sliding_window_serves_contexts_within_it(tmp_path: Path) -> None:
    config = Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=64, max_window_layers=1)
    theirs = save(tmp_path, config)
    with pytest.raises(ValueError, match="sliding_window is 64"):
        load(tmp_path, context=65, image_sizes=((24, 24),))
    ids = tokens(64)
    assert_close(
        our_logits(load(tmp_path, context=64, image_sizes=((24, 24),)).model, ids)[..., :VOCABULARY],
        their_logits(theirs, ids),
    )


def test_our_own_models_export_where_an_architecture_fits(tmp_path: Path) -> None:
    for mode in ("adaln", "token", "add"):
        model = tiny.model(mode)
        export_llama(tmp_path / mode, model, tiny.tokenizer())
        ids = torch.randint(tiny.tokenizer().size, (1, 100), generator=generator("ids"))
        assert_close(their_logits(AutoModelForCausalLM.from_pretrained(tmp_path / mode), ids), our_logits(model, ids))
    with pytest.raises(ValueError, match="not empty"):
        export_llama(tmp_path / "token", model, tiny.tokenizer())
    with pytest.raises(ValueError, match="both QK-norm and attention_bias"):
        export_llama(tmp_path / "none", tiny.model("adaln", attention_bias="qkv"), tiny.tokenizer())
    assert not list(tmp_path.glob("none*"))


def test_yarns_factor_is_in_the_exported_context_too(tmp_path: Path) -> None:
    """transformers 4 takes it from there, and our run's own context is a shorter one."""
    save(tmp_path / "theirs", FAMILY["llama-yarn"])
    model = load(tmp_path / "theirs").model
    told = describe(replace(model.config, context=32, image_sizes=((8, 8),)))
    assert told["max_position_embeddings"] == YARN["factor"] * YARN["original_max_position_embeddings"]
    assert told["rope_scaling"]["factor"] == YARN["factor"]


@pytest.mark.parametrize("kind", ["llama-3", "llama-yarn", "qwen2", "qwen3"])
def test_a_model_folder_keeps_all_of_it(kind: str, tmp_path: Path) -> None:
    save(tmp_path / "theirs", FAMILY[kind])
    loaded = load(tmp_path / "theirs")
    made = Pretrained(model=loaded.model, tokenizer=loaded.tokenizer, diffusion=FlowConfig(), generate=GenerateConfig())
    save_pretrained(tmp_path / "ours", made)
    again = load_pretrained(tmp_path / "ours").model
    assert again.config == loaded.model.config
    ids = tokens(50)
    assert torch.equal(our_logits(again, ids), our_logits(loaded.model, ids))


PEAK = """
import sys
from pathlib import Path
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast
from monoformer.config.model import ModelConfig
from monoformer.pretrained import load_llama
from monoformer.tokenizer import Tokenizer

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

Tokenizer.from_folder(sys.argv[1]), AutoConfig.from_pretrained(sys.argv[1])
torch.nn.Embedding(2, 2, device="meta")  # imports what any network does: code is not weights
before = kilobytes("VmRSS")
loaded = load_llama(sys.argv[1], image_side=ModelConfig(time="add"), seed=0)
print(kilobytes("VmHWM") - before, sum(p.numel() * p.element_size() for p in loaded.model.parameters()) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_weights_are_never_in_memory_twice(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "head_dim": 128}
    config = LlamaConfig(**{**SHAPE, **wide})
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config).state_dict()
    save_file({n: torch.zeros(t.shape) for n, t in names.items()}, tmp_path / "model.safetensors")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    plain_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, size = map(int, done.stdout.split()[-2:])
    assert size > 60_000
    assert 0.9 * size < peak < 1.25 * size


def test_a_real_model_writes_the_same_story(shared_data: Path, tmp_path: Path) -> None:
    weights, vocabulary = shared_data / "weights/stories260K.bin", shared_data / "tokenizers/tok512.bin"
    write_folder(weights, vocabulary, tmp_path / "stories")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "stories")
    loaded = load(tmp_path / "stories")
    made = Pretrained(model=loaded.model, tokenizer=loaded.tokenizer, diffusion=FlowConfig(), generate=GenerateConfig())
    prompt, count = "Once upon a time", 120
    ids = torch.tensor([[1, *loaded.tokenizer.encode(prompt)]])
    written = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)[0]
    expected = Tokenizer.from_folder(tmp_path / "stories").decode(written.tolist())
    settings = GenerateConfig(max_tokens=count)
    request = Request(document=Document((Text(prompt),)), want="text", settings=settings)
    (story,) = Engine(made, Pixels(), slots=2).run([request])
    text = "".join(segment.text for segment in story.segments if isinstance(segment, Text))
    assert expected.startswith("Once upon a time, there was a little girl named Lily.")
    assert len(expected) > 200
    assert expected == prompt + text
