"""Every objective and every sampler, through the whole small network: one step of training, one picture drawn."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monoformer.autoencoder import Pixels
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from monoformer.config.generate import GenerateConfig, check_sampler
from monoformer.document import Document, Text
from monoformer.generate.engine import Engine
from monoformer.generate.session import Request
from monoformer.pretrained import Pretrained, load_pretrained, save_pretrained
from tests import tiny

AXES: dict[str, tuple[Any, ...]] = {
    "path": ("flow", "linear", "cosine"),
    "prediction": ("velocity", "x_0", "eps", "v"),
    "variance": ("fixed_small", "fixed_large", "learned"),
    "shift": (0, 48),
    "sampler": ("euler", "heun", "ddim", "ddpm", "dpm++2m"),
    "spacing": ("uniform", "quadratic"),
    "eta": (0.0, 0.7),
    "mode": tuple(tiny.MODES),
}
Choice = tuple[Any, ...]


def configs(choice: Choice) -> tuple[DiffusionConfig, GenerateConfig]:
    """The configurations of one choice of every axis. Raises ValueError where they do not go together."""
    named = dict(zip(AXES, choice, strict=True))
    diffusion: DiffusionConfig
    if named["path"] == "flow":
        if named["prediction"] not in ("velocity", "x_0") or named["variance"] != "fixed_small":
            raise ValueError("a flow predicts velocity or x_0 and has no variance")
        diffusion = FlowConfig(prediction=named["prediction"], shift_base=named["shift"])
    else:
        if named["prediction"] == "velocity" or named["shift"]:
            raise ValueError("a chain predicts eps, v or x_0 and is not shifted")
        diffusion = DDPMConfig(betas=named["path"], prediction=named["prediction"], variance=named["variance"])
    generate = GenerateConfig(sampler=named["sampler"], spacing=named["spacing"], eta=named["eta"], steps=3)
    check_sampler(generate, diffusion)
    return diffusion, generate


def allowed() -> Iterator[Choice]:
    for choice in itertools.product(*AXES.values()):
        try:
            configs(choice)
        except ValueError:
            continue
        yield choice


def pairs_of(choice: Choice) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(enumerate(choice), 2))


def pairwise_cover() -> list[Choice]:
    """Allowed choices, few, in which any two values of two axes that ever go together do."""
    choices = list(allowed())
    open_pairs = set().union(*map(pairs_of, choices))
    chosen = []
    while open_pairs:
        chosen.append(max(choices, key=lambda choice: len(pairs_of(choice) & open_pairs)))
        open_pairs -= pairs_of(chosen[-1])
    return chosen


@pytest.mark.parametrize("choice", pairwise_cover(), ids=lambda choice: "-".join(map(str, choice)))
def test_every_pair_of_choices_trains_and_draws(choice: Choice, tmp_path: Path) -> None:
    diffusion, generate = configs(choice)
    model = tiny.model_config(choice[-1], learned_variance=tiny.learns_variance(diffusion))
    config = tiny.run_config(tmp_path, model=model, diffusion=diffusion, generate=generate)
    trainer = tiny.trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    values = trainer.train_step([next(trainer.parts.loader) for _ in range(2)])
    trainer.parts.loader.close()
    assert all(torch.tensor(value).isfinite() for value in values.values()), values
    assert values["image_loss"] > 0
    for name, parameter in trainer.model.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), f"{name} did not move"
    made = Pretrained(model=trainer.model.eval(), tokenizer=tiny.tokenizer(), diffusion=diffusion, generate=generate)
    first, again, other = (drawn(made, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def drawn(made: Pretrained, *seeds: int) -> torch.Tensor:
    """Pictures of seeds, all in one batch."""
    document = Document((Text("a red circle", "user"),))
    requests = [
        Request(document=document, want="image", settings=replace(made.generate, seed=seed), size=(12, 8))
        for seed in seeds
    ]
    server = Engine(made, Pixels(), vision=tiny.vision_of(made.model.config), slots=2 * len(seeds))
    return torch.stack([answer.images[0].pixels for answer in server.run(requests)])


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_alone_is_in_a_batch_with_ancestral_sampling(variance: Any) -> None:
    made = tiny.pretrained("token", diffusion=DDPMConfig(variance=variance, prediction="v"))
    made = replace(made, generate=GenerateConfig(sampler="ddpm", steps=6, guidance=2.0))
    together = drawn(made, 3, 4, 5)
    for row, seed in enumerate((3, 4, 5)):
        difference = (drawn(made, seed)[0].int() - together[row].int()).abs()
        assert difference.max() <= 1
    assert (together[0].int() - together[1].int()).abs().float().mean() > 5


def test_a_learned_variance_is_drawn_with() -> None:
    """Same weights, same noise: what the head says of the variance changes the picture."""
    made = tiny.pretrained("adaln", diffusion=DDPMConfig(variance="learned", prediction="v"))
    made = replace(made, generate=GenerateConfig(sampler="ddpm", steps=6, guidance=2.0))
    before = drawn(made, 0)
    head = made.model.image_head.linear
    with torch.no_grad():  # channels last within a patch: the second half of each 6 are the variance's
        head.weight.view(-1, 6, head.in_features)[:, 3:] *= -3
    assert (drawn(made, 0).int() - before.int()).abs().float().mean() > 1
    with torch.no_grad():
        ddim = replace(made, generate=replace(made.generate, sampler="ddim"))
        expected = drawn(ddim, 0)
        head.weight.view(-1, 6, head.in_features)[:, 3:] = 0
    assert torch.equal(drawn(ddim, 0), expected), "ddim does not look at it"


def test_a_folder_keeps_the_learned_variance_and_refuses_a_contradiction(tmp_path: Path) -> None:
    made = tiny.pretrained("adaln", diffusion=DDPMConfig(variance="learned"))
    save_pretrained(tmp_path / "model", made)
    again = load_pretrained(tmp_path / "model")
    assert again.diffusion == made.diffusion
    assert torch.equal(drawn(again, 0), drawn(made, 0))
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"learned"', '"fixed_small"'), encoding="utf-8")
    with pytest.raises(ValueError, match="learned_variance needs"):
        load_pretrained(tmp_path / "model")
