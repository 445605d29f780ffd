"""Every switch of Transfusion and LMFusion trains a step, and then draws and captions."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from monoformer.autoencoder import Pixels
from monoformer.config.data import SequenceConfig
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.run import RunConfig
from monoformer.data.source import Indexed
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request
from monoformer.pretrained import Pretrained
from tests import tiny

SIZE = (16, 8)

SWITCHES: dict[str, dict[str, Any]] = {
    **{f"linear {patch}": {"time": "add", "patch": patch} for patch in (1, 2, 4, 8)},
    **{f"unet {p}": {"time": "add", "patch": p, "image_patches": "unet", "unet_width": 8} for p in (2, 4, 8)},
    "unet, dit head, time token": {"time": "token", "patch": 4, "image_patches": "unet", "unet_width": 8},
    "experts, time added": {"time": "add", "patch": 4, "experts": "modality"},
    "experts, time token, unet": {
        "time": "token", "patch": 4, "experts": "modality", "image_patches": "unet", "unet_width": 8,
    },
}  # fmt: skip


def pairs(number: int) -> Document:
    """Caption first, or picture first, in turn."""
    random = Random(number)
    if number % 2:
        return Document((Text("red", "user"), tiny.image(random, target=True, role="assistant", size=SIZE)))
    return Document((tiny.image(random, role="user", size=SIZE), Text("red", "assistant")))


def transfusion(folder: Path, name: str, **train: Any) -> RunConfig:
    """Transfusion's recipe around the switch: cosine DDPM, eps, image weight 5, noise limit 500 of 1000."""
    head = "dit" if "dit" in name else "linear"
    return tiny.run_config(
        folder,
        model=tiny.model_config(image_sizes=(SIZE,), context=320, **{"image_head": head, **SWITCHES[name]}),
        diffusion=DDPMConfig(betas="cosine"),
        sequence=SequenceConfig(row=320, window=8, context="noised", noise_limit=0.5),
        generate=GenerateConfig(sampler="ddim", steps=3, guidance=3.0, max_tokens=4),
        train={"steps": 1, "rows": 1, "pass_rows": 1, "image_weight": 5.0, **train},
    )


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in SWITCHES), ("unet 4", "bf16"), ("experts, time token, unet", "bf16")],
)
def test_a_switch_trains_a_step_and_then_draws_and_captions(name: str, precision: str, tmp_path: Path) -> None:
    config = transfusion(tmp_path / "run", name, precision=precision)
    trainer = tiny.trainer(config, stream=Indexed(pairs))
    before = {key: p.detach().clone() for key, p in trainer.model.named_parameters()}
    values = trainer.train_step([next(trainer.parts.loader)])
    trainer.parts.loader.close()
    assert all(value > 0 and torch.tensor(value).isfinite() for value in values.values())
    assert [key for key, p in trainer.model.named_parameters() if torch.equal(p, before[key])] == []
    model = trainer.model.eval().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    made = Pretrained(model=model, tokenizer=tiny.tokenizer(), diffusion=config.diffusion, generate=config.generate)
    prompts = [Document((Text("red", "user"),)), Document((tiny.image(Random(1), role="user", size=SIZE),))]
    wants: list[Any] = ["image", "text"]
    requests = [
        Request(document=document, want=want, settings=config.generate)
        for document, want in zip(prompts, wants, strict=True)
    ]
    drawn, caption = Engine(made, Pixels(), slots=4).run(requests)
    assert drawn.images[0].pixels.shape == (3, *SIZE)
    assert not caption.images
