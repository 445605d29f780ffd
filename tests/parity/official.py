"""Our network and arithmetic against what the official code computed: python -m tests.parity.official FOLDER

FOLDER is a checkpoint in the official layout with `expected.safetensors` (inputs, and what its own code made of them in
fp32) and `fixture.json` (special tokens, guidance scale), like `../shared/fixtures/official-tiny`. Groups of tensors
that are missing are left out. Prints each tensor's largest error over its largest magnitude; the last line is one JSON
object (`null` where a shape differs or a number is none). Ends with 1 when one is above 1e-4.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from monoformer.autoencoder import Pixels
from monoformer.batch import Layout
from monoformer.config.diffusion import DDPMConfig
from monoformer.config.generate import GenerateConfig
from monoformer.diffusion.objectives import build_objective
from monoformer.diffusion.schedules import DDPMPath, expand
from monoformer.diffusion.variational import Posterior
from monoformer.generate.guidance import guide
from monoformer.generate.image import Drawing
from monoformer.generate.network import Network
from monoformer.generate.passes import Context, denoise, read
from monoformer.model.attention import dense_mask
from monoformer.model.monoformer import MonoFormer, Place
from monoformer.packing import collate
from monoformer.pretrained.official import load_network, read_diffusion
from monoformer.pretrained.weights import read_description, read_json
from monoformer.randomness import generator

TOLERANCE = 1e-4
GUIDED_CHANNELS = 3

Found = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A network, and what was recorded of it."""

    model: MonoFormer
    diffusion: DDPMConfig
    tensors: dict[str, Tensor]
    image_token: int
    """Id that stands for an image, with its time token if it has one."""
    guidance: float
    longest: int
    """Tokens after which the official code cuts a sequence."""

    @classmethod
    def open(cls, folder: Path) -> "Recording":
        """Read a folder of the fixture's form."""
        fields = read_description(folder)
        model = load_network(folder, fields=fields, dtype=torch.float32)
        recorded, described = folder / "expected.safetensors", folder / "fixture.json"
        if not recorded.is_file():
            raise ValueError(f"{folder} has no expected.safetensors, so there is nothing to compare with")
        fixture = read_json(described) if described.is_file() else {}
        return cls(
            model=model,
            diffusion=read_diffusion(model.config),
            tensors=load_file(recorded),
            image_token=fixture.get("special_tokens", {}).get("image", fields.get("image_token_index")),
            guidance=fixture.get("cfg_scale", 2.5),
            longest=fields.get("tokenizer_max_length") or sys.maxsize,
        )

    def holds(self, group: str, *names: str) -> bool:
        """Whether the group has all of these inputs."""
        return all(f"{group}.{name}" in self.tensors for name in names)

    def take(self, group: str, *names: str) -> list[Tensor]:
        """Tensors of a group."""
        return [self.tensors[f"{group}.{name}"] for name in names]

    @cached_property
    def network(self) -> Network:
        """Two contexts, a conditional and an unconditional one."""
        longest = max([1, *(t.shape[1] for name, t in self.tensors.items() if name.endswith("input_ids"))])
        cache = self.model.cache(2, longest)
        objective = build_objective(self.diffusion)
        return Network(model=self.model, objective=objective, autoencoder=Pixels(), cache=cache)

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """Patches down and across latents (..., h, w)."""
        patch = self.model.config.patch
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    # --- one pass over everything ---

    def passes(self) -> Found:
        """Logits and predictions of whole sequences."""
        for name in self.tensors:
            group = name.removesuffix(".input_ids")
            if group == name:
                continue
            rows = [self._row(group, row) for row in range(len(self.tensors[name]))]
            yield f"{group}.logits", torch.cat([logits for logits, _ in rows])
            predictions = [prediction for _, prediction in rows if prediction is not None]
            if predictions:
                yield f"{group}.model_output", torch.cat(predictions)

    def _row(self, group: str, row: int) -> tuple[Tensor, Tensor | None]:
        """Logits (1, T, V) and prediction (1, C, h, w) of one sequence."""
        ids = self.tensors[f"{group}.input_ids"][row].tolist()
        has_image = self.image_token in ids and self.holds(group, "x_t", "t")
        latents, times = [x[row : row + 1] for x in self.take(group, "x_t", "t")] if has_image else (None, None)
        layout, start = self._layout(ids, latents)
        batch = collate([[layout]], length=len(layout), pad=0)
        place = None
        images, network_times, places = [], [], []
        if latents is not None and times is not None:
            place = Place(torch.zeros(1, dtype=torch.long), torch.tensor([start]), self.grid(latents))
            images, network_times, places = [latents], [times.float()], [place]
        hidden = self.model(
            batch.ids, batch.positions, dense_mask(batch), images=images, times=network_times, places=places
        )
        prediction = None if place is None else self.model.image(hidden, network_times[0], place)
        return self.model.text(hidden)[:, : self.longest], prediction

    def _layout(self, ids: list[int], latents: Tensor | None) -> tuple[Layout, int]:
        """The recorded ids as tokens, and where the patches start."""
        layout, start, config = Layout(), 0, self.model.config
        for token in ids:
            if token != self.image_token or latents is None:
                layout.add_token(token)
                continue
            if config.has_time_token:
                layout.add_token(token)
            height, width = self.grid(latents)
            start, count = len(layout), height * width
            ends = [start + count] * count if config.image_attention == "two-way" else None
            layout.add_tokens(token, count, ends=ends, private=0)
        return layout, start

    # --- guidance and sampling, behind cached contexts ---

    def _contexts(self, row: int) -> list[Context]:
        """The two prompts, read up to where the image begins."""
        contexts = [Context(0), Context(1)]
        layouts = []
        for ids in self.take("cfg", "cond_input_ids", "uncond_input_ids"):
            before = ids[row].tolist()
            layouts.append(self._layout(before[: before.index(self.image_token)], None)[0])
        read(self.network, contexts, layouts)
        return contexts

    def guided(self) -> Found:
        """The guided prediction, as eps and variance again."""
        if not self.holds("cfg", "cond_input_ids", "uncond_input_ids", "x_t", "t"):
            return
        x_t, index = self.take("cfg", "x_t", "t")
        made = []
        for row in range(len(x_t)):
            x, t = x_t[row : row + 1], (index[row : row + 1] / (self.diffusion.steps - 1)).float()
            estimates = denoise(self.network, self._contexts(row), x.expand(2, -1, -1, -1), t.expand(2), self.grid(x))
            mixed = guide(*estimates, self.guidance, channels=self.guided_channels)
            path = self.network.objective.path
            eps = (x[0] - expand(path.alpha(t), x)[0] * mixed.x_0) / expand(path.sigma(t), x)[0]
            learned = mixed.variance_fraction
            made.append(eps if learned is None else torch.cat([eps, 2 * learned - 1]))
        yield "cfg.model_output", torch.stack(made)

    def drawn(self) -> Found:
        """Pictures of DDIM, through the sampler and guidance that the engine uses."""
        for name in self.tensors:
            found = re.fullmatch(r"(ddim(\d+))\.x_T", name)
            if not found or not self.holds("cfg", "cond_input_ids", "uncond_input_ids"):
                continue
            noise = self.tensors[name]
            settings = GenerateConfig(
                sampler="ddim", steps=int(found[2]), guidance=self.guidance, guided_channels=self.guided_channels
            )
            rows = [draw(self.network, self._contexts(row), x, settings) for row, x in enumerate(noise)]
            yield f"{found[1]}.sample", torch.stack(rows)

    @property
    def guided_channels(self) -> int:
        """Channels that the official code guides."""
        config = self.model.config
        return 0 if self.guidance == 1 else min(GUIDED_CHANNELS, config.channels * (1 + config.learned_variance))

    # --- the arithmetic of the loss ---

    def terms(self) -> Found:
        """Terms of the training loss, and the posterior, of recorded predictions."""
        if not self.holds("loss", "x_0", "noise", "t", "model_output"):
            return
        x_0, noise, index, output = self.take("loss", "x_0", "noise", "t", "model_output")
        objective, path = self.network.objective, self.network.objective.path
        assert isinstance(path, DDPMPath)
        t = (index / (self.diffusion.steps - 1)).float()
        x_t = objective.noised(x_0, t, noise)
        estimate, posterior = objective.estimate(output, x_t, t), Posterior(path.alpha_bar)
        yield "loss.x_t", x_t
        simple = build_objective(DDPMConfig())
        yield "loss.mse", simple.error(output[:, : x_0.shape[1]], x_0, t, noise)
        yield "loss.total", objective.error(output, x_0, t, noise)
        yield "posterior.pred_x0", estimate.x_0
        yield "posterior.mean", posterior.mean(estimate.x_0, x_t, index)
        fraction = estimate.variance_fraction
        if fraction is None:  # the upper bound, but at index 0 that of index 1 from below
            fraction = expand((index > 0).float(), x_0).expand_as(x_0)
        yield "loss.vb", posterior.bound(x_0, x_t, index, guess=estimate.x_0, fraction=fraction)
        yield "posterior.log_variance", posterior.log_variance(fraction, index)


@torch.no_grad()
def draw(network: Network, contexts: list[Context], noise: Tensor, settings: GenerateConfig) -> Tensor:
    """The latent (C, h, w) that becomes of noise behind contexts; one `Drawing`, as the engine has many."""
    patch = network.model.config.patch
    grid = noise.shape[-2] // patch, noise.shape[-1] // patch
    drawing = Drawing.start(contexts, noise, network.objective, settings, grid, generator(0))
    latent = None
    while latent is None:
        x, t = drawing.x.expand(len(contexts), *noise.shape), torch.tensor([drawing.t] * len(contexts))
        latent = drawing.advance(denoise(network, contexts, x, t, grid))
    return latent


@torch.no_grad()
def compare(folder: Path) -> dict[str, float]:
    """Largest error over largest magnitude of every recorded tensor that is an output."""
    recording = Recording.open(folder)
    errors: dict[str, float] = {}
    for found in (recording.passes(), recording.guided(), recording.drawn(), recording.terms()):
        for name, value in found:
            if name in recording.tensors:
                errors[name] = error_of(value, recording.tensors[name])
    return errors


def error_of(value: Tensor, expected: Tensor) -> float:
    """Largest error over largest magnitude; infinite where the shapes differ or a number is none."""
    if value.shape != expected.shape:
        return math.inf
    error = float((value.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


def main() -> None:
    """Compare the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.parity.official FOLDER")
    try:
        errors = compare(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not errors:
        sys.exit("error: nothing in its expected.safetensors is a tensor that is compared (names are in this file)")
    for name, error in sorted(errors.items()):
        print(f"{name:<28} {error:.2e}")
    worst = max(errors.values())
    print(json.dumps({"max_error": worst if math.isfinite(worst) else None}))
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
