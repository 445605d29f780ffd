"""Configurations: JSON round trips for every arm, nearest names, types, and contradictions refused."""

import dataclasses
import json
import math
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monoformer.config.data import (
    FolderData,
    MixtureData,
    ParquetData,
    ScenesData,
    SequenceConfig,
    TextData,
    TokenizerConfig,
)
from monoformer.config.diffusion import DDPMConfig, FlowConfig, SamplerName
from monoformer.config.generate import STEPS, GenerateConfig, check_sampler, kept
from monoformer.config.generate import changed as called
from monoformer.config.model import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from monoformer.config.run import RunConfig, from_json, load_config, save_config, to_json
from monoformer.config.serve import Limits
from monoformer.config.sources import ChatData, InterleavedData, StreamData
from monoformer.config.train import AdamWConfig, MuonConfig, TrainConfig

NAN = math.nan
DDIM = GenerateConfig(sampler="ddim", stop=("a", "b"), seed=3)
DATA = [
    ScenesData(size=32, objects=(1, 2)),
    FolderData(root="x", prompt="a {}", flip=True),
    ParquetData(files=("a", "b"), edit=1.0, edit_group="g", edit_column="c"),
    TextData(files=("a",), holdout=0.25),
    MixtureData(sources=(ScenesData(), TextData(files=("b",))), weights=(1.0, 2.5)),
    ChatData(files=("a",), shape="bucket", buckets=((32, 64), (64, 32))),
    InterleavedData(files=("a",), draw=False),
    StreamData(path="a/b", chat=True, characters=100),
]
RUNS = [
    RunConfig(),
    *(RunConfig(data=data) for data in DATA),
    RunConfig(diffusion=FlowConfig(prediction="velocity", time_mean=-0.5)),
    RunConfig(diffusion=DDPMConfig(betas="cosine", steps=500), generate=DDIM),
    RunConfig(
        model=ModelConfig(learned_variance=True),
        diffusion=DDPMConfig(prediction="v", variance="learned"),
        generate=replace(DDIM, sampler="ddpm", spacing="quadratic"),
    ),
    RunConfig(diffusion=FlowConfig(shift_base=256), generate=replace(DDIM, eta=0.5)),
    RunConfig(train=TrainConfig(optimizer=AdamWConfig(rate=1e-5, betas=(0.5, 0.6)), schedule="cosine")),
    RunConfig(train=TrainConfig(optimizer=MuonConfig(momentum=0.9), pass_rows=4)),
    RunConfig(
        start="x",
        model=ModelConfig(experts="modality", image_patches="unet", unet_width=16),
        sequence=SequenceConfig(context="noised", noise_limit=0.5),
        train=TrainConfig(freeze="text"),
    ),
    RunConfig(model=ModelConfig(image_sizes=((32, 64), (64, 32)), time="token"), tokenizer=TokenizerConfig(path="x")),
]


@pytest.mark.parametrize("config", RUNS, ids=range(len(RUNS)))
def test_json_round_trip(config: RunConfig, tmp_path: Path) -> None:
    again = from_json(RunConfig, json.loads(json.dumps(to_json(config))))
    assert again == config
    assert hash(again) == hash(config), "lists must come back as tuples"
    save_config(config, tmp_path / "run.json")
    assert load_config(tmp_path / "run.json") == config


def test_every_preset_makes_a_round_trip() -> None:
    from monoformer.presets import PRESETS

    for name, preset in PRESETS.items():
        assert from_json(RunConfig, json.loads(json.dumps(to_json(preset())))) == preset(), name


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default run's JSON with one value changed, or a field added."""
    data: dict[str, Any] = to_json(RunConfig())
    *outer, last = path.split(".")
    inner = data
    for name in outer:
        inner = inner[name]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trian", {}, r"config has no field 'trian'; did you mean 'train'\?"),
        ("train.step", 5, r"config\.train has no field 'step'; did you mean 'steps'\?"),
        ("model.zzz", 5, r"config\.model has no field 'zzz'; fields are width"),
        ("train.steps", "5", r"config\.train\.steps must be int, but is '5'"),
        ("train.steps", 5.5, r"config\.train\.steps must be int, but is 5\.5"),
        ("train.steps", True, r"config\.train\.steps must be int, but is True"),
        ("train.steps", None, r"config\.train\.steps must be int, but is None"),
        ("model.qk_norm", 1, r"config\.model\.qk_norm must be bool, but is 1"),
        ("train.clip", "x", r"config\.train\.clip must be float, but is 'x'"),
        ("name", 3, r"config\.name must be str, but is 3"),
        ("model", [], r"config\.model must be an object, but is \[\]"),
        ("model.time", "tokn", r"config\.model\.time must be one of 'token', .*'adaln_input', but is 'tokn'"),
        ("model.image_sizes", 64, r"config\.model\.image_sizes must be a list, but is 64"),
        ("model.image_sizes", [[64]], r"config\.model\.image_sizes\[0\] must have 2 entries, but has 1"),
        ("model.image_sizes", [[64, "x"]], r"config\.model\.image_sizes\[0\]\[1\] must be int"),
        (
            "diffusion",
            {"kind": "Flow"},
            r'config\.diffusion needs a "kind" among FlowConfig, DDPMConfig, but has \'Flow\'',
        ),
        ("diffusion", {}, r'needs a "kind" among'),
        ("diffusion.betas", "linear", r"config\.diffusion has no field 'betas'"),
        ("data.kind", "TextData", r"config\.data has no field 'size'"),
    ],
)
def test_wrong_json_is_a_value_error_that_says_where(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(RunConfig, changed(path, value))


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.model"):
        from_json(RunConfig, changed("model", {"kind": "TrainConfig"}))


def test_a_missing_field_without_default_is_named() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Needy:
        name: str
        size: int = 3

    assert from_json(Needy, {"name": "x"}) == Needy(name="x")
    with pytest.raises(ValueError, match="name"):
        from_json(Needy, {"size": 2})


def test_whole_numbers_serve_as_floats() -> None:
    assert from_json(RunConfig, changed("train.clip", 2)).train.clip == 2.0
    assert isinstance(from_json(RunConfig, changed("train.clip", 2)).train.clip, float)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "must be an object"), (None, "does not exist")]
)
def test_a_file_that_is_no_configuration(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"run\.json.*{message}"):
        load_config(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ModelConfig, {"width": 100, "heads": 3}, "even whole number, but 100 / 3"),
        (ModelConfig, {"width": 36, "heads": 12}, "even whole number"),
        (ModelConfig, {"heads": 4, "kv_heads": 3}, "3 does not divide 4"),
        (ModelConfig, {"heads": 0}, "heads"),
        (ModelConfig, {"kv_heads": 0}, "kv_heads"),
        (ModelConfig, {"width": 0}, "width"),
        (ModelConfig, {"layers": 0}, "layers must be at least 1"),
        (ModelConfig, {"width": 6, "heads": 3, "kv_heads": 3}, "divisible by 4"),
        (ModelConfig, {"image_sizes": ()}, "image_sizes is empty"),
        (ModelConfig, {"image_sizes": ((0, 64),)}, "image_sizes"),
        (ModelConfig, {"key_width": 5}, "key_width must be even"),
        (ModelConfig, {"width": 100, "heads": 3, "kv_heads": 2, "key_width": 8}, "2 does not divide 3"),
        (LinearScaling, {"factor": 0.5}, "factor must be at least 1"),
        (Llama3Scaling, {"low": 4.0}, "0 < low < high"),
        (YarnScaling, {"beta_slow": 40.0}, "0 < beta_slow < beta_fast"),
        (ModelConfig, {"patch": 8, "image_sizes": ((64, 60),)}, "60"),
        (FlowConfig, {"time_deviation": 0.0}, "above 0"),
        (FlowConfig, {"shift_base": -1}, "shift_base must be 0 or more"),
        (FlowConfig, {"clamp_time": 0.0}, r"diffusion\.clamp_time must be in \(0, 1\]"),
        (FlowConfig, {"prediction": "velocity", "clamp_time": 0.3}, "nothing when velocity is predicted"),
        (DDPMConfig, {"steps": 1}, "at least 2"),
        (GenerateConfig, {"sampler": "ddmp"}, "sampler must be one of euler, heun, ddim, ddpm"),
        (GenerateConfig, {"spacing": "even"}, "spacing must be one of uniform, quadratic"),
        (GenerateConfig, {"sampler": "ddim", "eta": 1.5}, r"eta must be in \[0, 1\]"),
        (RunConfig, {"generate": GenerateConfig(sampler="heun", eta=0.5)}, "eta = 0.5 has no effect on heun"),
        (RunConfig, {"generate": GenerateConfig(sampler="ddpm", eta=0.5)}, "'ddpm' needs DDPM diffusion"),
        (GenerateConfig, {"guided_channels": 3, "guidance": 1.0}, "has no effect without guidance"),
        (GenerateConfig, {"guided_channels": -1}, "guided_channels must be 0 or more"),
        (SequenceConfig, {"drop_text": 1.5}, "drop_text"),
        (SequenceConfig, {"drop_context": 0.4}, "drop_context"),
        (SequenceConfig, {"row": 1}, "row"),
        (TokenizerConfig, {"vocabulary": 200}, "at least 266"),
        (GenerateConfig, {"steps": 0}, "at least 1"),
        (GenerateConfig, {"temperature": -1.0}, "temperature"),
        (GenerateConfig, {"top_p": 0.0}, "top_p"),
        (GenerateConfig, {"min_p": 0.1}, "no effect at temperature 0"),
        (GenerateConfig, {"top_k": 5}, "top_k = 5 has no effect at temperature 0"),
        (GenerateConfig, {"top_p": 0.9}, "top_p = 0.9 has no effect at temperature 0"),
        (GenerateConfig, {"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        (GenerateConfig, {"logit_bias": ((3, 1.0), (3, 2.0))}, "name each token once"),
        (GenerateConfig, {"logit_bias": ((3, 0.0),)}, "from -1e9 to 1e9 and not 0"),
        (GenerateConfig, {"logit_bias": ((3, 1e39),)}, "from -1e9 to 1e9"),
        (GenerateConfig, {"logit_bias": ((3, float("nan")),)}, "from -1e9 to 1e9"),
        (GenerateConfig, {"guidance_rescale": 1.5}, "guidance_rescale must be in"),
        (TrainConfig, {"rows": 6, "pass_rows": 4}, "4 does not divide 6"),
        (TrainConfig, {"rows": 6, "pass_rows": -2}, "pass_rows"),
        (TrainConfig, {"steps": 0}, "steps must be at least 1"),
        (TrainConfig, {"schedule": "constant", "final_rate": 0.5}, "final_rate = 0.5 has no effect"),
        (TrainConfig, {"schedule": "cosine", "decay": 0.9}, "decay = 0.9 has no effect"),
        (TrainConfig, {"decay": 0.0}, "decay"),
        (TrainConfig, {"warmup": -1}, "warmup"),
        (TrainConfig, {"clip": -1.0}, "clip"),
        (TrainConfig, {"clip": NAN}, r"train\.clip must be 0 or more, but is nan"),
        (TrainConfig, {"warmup": 11, "steps": 10}, r"warmup = 11 would not end within train\.steps = 10"),
        (TrainConfig, {"text_weight": -1.0}, r"text_weight must be 0 or more"),
        (TrainConfig, {"text_weight": 0.0, "image_weight": 0.0}, r"train\.image_weight are all 0"),
        (TrainConfig, {"image_weight": math.inf}, "image_weight must be 0 or more, but is inf"),
        (TrainConfig, {"final_rate": -0.1}, "final_rate"),
        (AdamWConfig, {"rate": -1.0}, r"train\.optimizer\.rate must be 0 or more, but is -1"),
        (AdamWConfig, {"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), but is \(0\.9, 1\.0\)"),
        (AdamWConfig, {"weight_decay": -0.1}, "weight_decay"),
        (MuonConfig, {"rate": NAN}, "rate must be 0 or more, but is nan"),
        (MuonConfig, {"adamw_rate": -1.0}, "adamw_rate"),
        (MuonConfig, {"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        (MuonConfig, {"betas": (-0.1, 0.9)}, "betas"),
        (GenerateConfig, {"guidance": NAN}, r"generate\.guidance must be 0 or more, but is nan"),
        (GenerateConfig, {"guidance": -3.0}, "guidance"),
        (GenerateConfig, {"image_guidance": -0.5}, "image_guidance"),
        (GenerateConfig, {"temperature": NAN}, "temperature must be 0 or more, but is nan"),
        (FlowConfig, {"time_deviation": NAN}, "time_deviation must be above 0, but is nan"),
        (FlowConfig, {"time_mean": math.inf}, "time_mean must be a finite number"),
        (ModelConfig, {"rope_theta": 0.0}, "rope_theta must be above 0"),
        (ModelConfig, {"norm_epsilon": -1.0}, "norm_epsilon must be above 0"),
        (ModelConfig, {"image_sizes": ((64, 64), (64, 64))}, "name each size once"),
        (ModelConfig, {"image_sizes": ((512, 512),), "context": 64}, "512x512, 4098 tokens, more than .*= 64"),
        (ModelConfig, {"time": "token", "context": 66}, "64x64, 67 tokens"),
        (YarnScaling, {"attention_factor": NAN}, "attention_factor must be above 0"),
        (ScenesData, {"draw": NAN}, r"data\.draw must be 0 or more, but is nan"),
        (ParquetData, {"holdout": -1}, r"data\.holdout must be 0 or more"),
        (Limits, {"body_seconds": NAN}, r"limits\.body_seconds must be above 0"),
        (ScenesData, {"objects": (2, 1)}, "objects"),
        (FolderData, {"prompt": "no place"}, "hold {} once"),
        (ParquetData, {"edit": 1.0}, "edit_group"),
        (TextData, {"holdout": 1.0}, "holdout"),
        (ChatData, {"characters": -1}, "characters"),
        (ChatData, {"buckets": ((8, 8),)}, "shape to bucket"),
        (InterleavedData, {"holdout": -0.5}, "holdout"),
        (StreamData, {"path": "a", "files": ("b",)}, "give one of them"),
        (StreamData, {"characters": 5}, "set data.chat"),
        (StreamData, {"block": 0}, "block"),
        (FolderData, {"size": -1}, "positive"),
        (TrainConfig, {"skip_limit": 1.5}, r"skip_limit must be in \[0, 1\]"),
        (MixtureData, {"sources": (ScenesData(),), "weights": ()}, "as long as each other"),
        (MixtureData, {"sources": (ScenesData(),), "weights": (0.0,)}, "above 0"),
        (MixtureData, {"sources": (ScenesData(),), "weights": (NAN,)}, "above 0"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_contradictions_are_refused(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_a_run_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sequence\.row = 512 is longer than model\.context = 256"):
        RunConfig(model=ModelConfig(context=256))
    with pytest.raises(ValueError, match="'euler' needs flow diffusion"):
        RunConfig(diffusion=DDPMConfig())
    with pytest.raises(ValueError, match="heun"):
        RunConfig(diffusion=DDPMConfig(), generate=replace(DDIM, sampler="heun"))
    with pytest.raises(ValueError, match="'ddpm' needs DDPM diffusion"):
        RunConfig(generate=replace(DDIM, sampler="ddpm"))
    with pytest.raises(ValueError, match=r"needs an image head that returns it; set model\.learned_variance"):
        RunConfig(diffusion=DDPMConfig(variance="learned"), generate=DDIM)
    for diffusion in (FlowConfig(), DDPMConfig(variance="fixed_large")):
        with pytest.raises(ValueError, match=r"model\.learned_variance needs diffusion\.variance = learned"):
            RunConfig(model=ModelConfig(learned_variance=True), diffusion=diffusion, generate=DDIM)
    with pytest.raises(ValueError, match=r"chain of 100 levels cannot be sampled"):
        RunConfig(diffusion=DDPMConfig(steps=100), generate=replace(DDIM, steps=200))


def test_a_call_leaves_out_what_it_did_not_give_and_what_has_no_effect() -> None:
    folder = GenerateConfig(sampler="ddim", eta=1.0, guidance_rescale=0.5, negative="blurred", temperature=0.7, top_k=5)
    for sampler in ("euler", "heun", "ddpm", "dpm++2m"):
        own = replace(folder, sampler=sampler, eta=0.0, steps=STEPS[sampler])  # type: ignore[arg-type]
        assert called(folder, {"sampler": sampler}) == own
    assert called(folder, {"sampler": "ddim", "steps": 3}) == replace(folder, steps=3)
    assert called(folder, {"temperature": 0.0}) == replace(folder, temperature=0.0, top_k=0)
    plain = called(folder, {"guidance": 1.0})
    assert (plain.guidance_rescale, plain.negative, plain.eta) == (0.0, "", 1.0)
    with pytest.raises(ValueError, match="negative = 'red' has no effect without guidance"):
        called(folder, {"guidance": 1.0, "negative": "red"})
    with pytest.raises(ValueError, match="has no effect on euler"):
        check_sampler(called(folder, {"sampler": "euler", "eta": 1.0}), FlowConfig())


def test_a_run_keeps_its_model_s_settings_but_for_those_it_names() -> None:
    model = GenerateConfig(sampler="ddim", eta=1.0, steps=40, guidance=3.0, stop=("x",), temperature=0.7, top_k=5)
    assert kept(model, GenerateConfig()) == model
    assert kept(model, GenerateConfig(guidance=2.0, seed=3)) == replace(model, guidance=2.0, seed=3)
    assert kept(model, GenerateConfig(sampler="heun")) == replace(model, sampler="heun", eta=0.0, steps=STEPS["heun"])
    assert kept(model, GenerateConfig(sampler="heun", steps=7)).steps == 7
    assert kept(kept(model, DDIM), DDIM) == kept(model, DDIM)


def test_another_sampler_comes_with_steps_of_its_own() -> None:
    model = GenerateConfig(sampler="ddim", eta=1.0, steps=40)
    assert set(STEPS) == set(typing.get_args(SamplerName))
    for sampler, steps in STEPS.items():
        assert called(model, {"sampler": sampler}).steps == (40 if sampler == "ddim" else steps)
        assert called(model, {"sampler": sampler, "steps": 9}).steps == 9
    assert called(model, {"eta": 0.5}).steps == 40
    with pytest.raises(ValueError, match="must be one of"):
        called(model, {"sampler": "eulre"})


def test_fields_are_keyword_only_frozen_and_documented() -> None:
    for kind in (RunConfig, ModelConfig, TrainConfig, GenerateConfig, FlowConfig, DDPMConfig, *map(type, DATA)):
        for field in dataclasses.fields(kind):
            assert field.kw_only, f"{kind.__name__}.{field.name}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]
