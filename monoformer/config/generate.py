"""Settings of writing and drawing, and which sampler goes with which path."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from monoformer.config.bounds import check_numbers
from monoformer.config.diffusion import DDPMConfig, DiffusionConfig, SamplerName, Spacing


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Defaults of a model folder; every call may replace them."""

    sampler: SamplerName = "euler"
    """How the noise is taken away: euler and heun for flow models, ddpm for DDPM, ddim and dpm++2m for both."""
    steps: int = 25
    """Denoising steps of a picture."""
    spacing: Spacing = "uniform"
    """Where the steps lie in time: evenly, or quadratically with more of them near the clean picture."""
    eta: float = 0.0
    """Noise that ddim adds in every step: 0 none, 1 as much as ddpm with fixed_small variance."""
    guidance: float = 2.5
    """Classifier-free guidance; 1 means none (and costs no second pass)."""
    image_guidance: float = 1.0
    """The same for pictures in the document, as in an edit: how much more like them than without them, with a third
    context (InstructPix2Pix, arXiv 2211.09800). `guidance` then scales the text alone."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times at which guidance is applied; outside only the conditional context is asked (arXiv 2404.07724)."""
    guidance_rescale: float = 0.0
    """How far the deviation of each estimate is drawn back to the conditional one, from 0 to 1 (arXiv 2305.08891)."""
    negative: str = ""
    """A text that guidance leads away from; it replaces the empty one."""
    guided_channels: int = 0
    """Channels of the network's output that guidance strengthens, the first ones (of a learned variance: behind the
    latent's); 0: the latent's. The official MonoFormer code guides 3, which is here to compare with it."""
    max_tokens: int = 256
    """Most text tokens written in one turn."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 among all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Sample among tokens at least so many times as likely as the likeliest (arXiv 2407.01082); 0 among all."""
    repetition_penalty: float = 1.0
    """What makes tokens of the text so far less likely above 1, more likely below (CTRL, arXiv 1909.05858, section
    4.1): a positive logit is divided by it, a negative one multiplied."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""
    stop: tuple[str, ...] = ()
    """Strings that end the writing; they are not part of the answer."""
    seed: int = 0
    """Seed of the first item; item i of a list uses seed + i."""

    def __post_init__(self) -> None:
        check_numbers(self, "steps", room="generate", least=1)
        amounts = ("guidance", "image_guidance", "guided_channels", "max_tokens", "temperature", "top_k")
        check_numbers(self, *amounts, room="generate", least=0)
        check_numbers(self, "eta", "guidance_rescale", "min_p", room="generate", least=0, most=1)
        check_numbers(self, "top_p", room="generate", above=0, most=1)
        check_numbers(self, "repetition_penalty", room="generate", above=0)
        for name, kind in (("sampler", SamplerName), ("spacing", Spacing)):  # calls may pass any word
            if getattr(self, name) not in typing.get_args(kind):
                known = ", ".join(typing.get_args(kind))
                raise ValueError(f"generate.{name} must be one of {known}, but is {getattr(self, name)!r}")
        self._check_guidance()
        self._check_words()

    def _check_guidance(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"generate.guidance_interval must rise within 0 and 1, but is {self.guidance_interval}")
        for name, default in GUIDING.items():
            if self.guidance == self.image_guidance == 1 and getattr(self, name) != default:
                raise ValueError(
                    f"generate.{name} = {getattr(self, name)!r} has no effect without guidance; set guidance above 1"
                )

    def _check_words(self) -> None:
        for name, default in CHOOSING.items():
            if self.temperature == 0 and getattr(self, name) != default:
                raise ValueError(
                    f"generate.{name} = {getattr(self, name)} has no effect at temperature 0, which takes the "
                    f"likeliest token; set a temperature above 0, or leave {name} out"
                )
        tokens = [token for token, _ in self.logit_bias]
        if len(set(tokens)) < len(tokens) or min(tokens, default=0) < 0:
            raise ValueError(f"generate.logit_bias must name each token once, by its id, but names {tokens}")
        if not all(bias and abs(bias) <= MOST_BIAS for _, bias in self.logit_bias):
            raise ValueError(
                f"generate.logit_bias must be from -1e9 to 1e9 and not 0, but is {self.logit_bias}; -100 forbids"
            )


DRAWING = (
    *("sampler", "steps", "spacing", "eta", "guidance", "image_guidance", "guidance_interval", "guidance_rescale"),
    *("negative", "guided_channels"),
)
"""Settings of pictures."""

WRITING = (*("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "logit_bias", "stop"),)
"""Settings of texts."""

MOST_BIAS = 1e9
"""Far beyond any logit, and far from the largest number of fp32, which a sum must not reach."""

CHOOSING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Settings of choosing among likely tokens, and what leaves them out: at temperature 0 they have no effect."""

GUIDING = {"guidance_interval": (0.0, 1.0), "guidance_rescale": 0.0, "negative": "", "guided_channels": 0}
"""Settings of guidance beside its scales, and what leaves them out: without guidance they have no effect."""

STEPS: dict[str, int] = {
    "euler": 30,
    "ddim": 30,  # without noise on a flow it is Euler's method
    "heun": 15,  # it asks the network twice in every step but the last: 29 evaluations
    "dpm++2m": 20,
    "ddpm": 250,  # the chain's own noise wants many: MonoFormer and Transfusion take as many
}
"""Steps of a sampler that a call names without steps: a folder's number was chosen for the folder's own sampler.

Where the released model's curves are within two points of their best (docs/results.md); a flow has none of ddpm."""


def changed(settings: GenerateConfig, given: Mapping[str, Any]) -> GenerateConfig:
    """The settings with those that one call gives, without those of the folder that then have no effect.

    Another sampler than the folder's comes with steps of its own, unless the call gives their number.
    """
    left_out: dict[str, Any] = {}
    if given.get("sampler", settings.sampler) != settings.sampler:
        left_out["steps"] = STEPS.get(given["sampler"], settings.steps)
    if given.get("temperature") == 0:
        left_out |= CHOOSING
    if given.get("sampler", "ddim") != "ddim":
        left_out["eta"] = 0.0
    if all(given.get(name, getattr(settings, name)) == 1 for name in ("guidance", "image_guidance")):
        left_out |= GUIDING
    return replace(settings, **{**left_out, **given})


def from_words(settings: GenerateConfig) -> GenerateConfig:
    """The settings of a picture from words alone, on which guidance by pictures has no effect."""
    return changed(settings, {"image_guidance": 1.0})


def check_matters(given: Mapping[str, Any], *, want: str, chooses: bool = False, option: str = "") -> None:
    """Refuse settings that one call gives and that cannot matter for what it wants: ("text", "image" or "any").

    `chooses`: the text is one of given ones. `option` stands before a name where it is one of the command line.
    """
    idle = {"text": DRAWING, "image": WRITING}.get(want, ())
    why = {"text": "where only text is wanted", "image": "where only a picture is wanted"}.get(want, "")
    for name, value in given.items():
        if isinstance(value, tuple | list | dict | str) and not value:
            continue  # it asks for nothing
        if name in idle:
            raise ValueError(f"{_called(name, option)} has no effect {why}; leave it out")
        if chooses and name in WRITING and name != "temperature":
            raise ValueError(
                f"{_called(name, option)} has no effect on an answer that is one of the choices; leave it out"
            )


def _called(name: str, option: str) -> str:
    return option + name.replace("_", "-") if option else name


def kept(settings: GenerateConfig, own: GenerateConfig) -> GenerateConfig:
    """A model's settings, but for those of a run that goes on from it which are not a field's default.

    A sampler of the run's own brings its `eta`, which means nothing to another one, and steps as in a call.
    """
    given = {field.name: getattr(own, field.name) for field in fields(own)}
    given = {name: value for name, value in given.items() if value != getattr(GenerateConfig(), name)}
    if "sampler" in given:
        given["eta"] = own.eta
    return changed(settings, given)


def check_sampler(generate: GenerateConfig, diffusion: DiffusionConfig) -> None:
    """Refuse a sampler that does not fit how the model was trained."""
    chain = isinstance(diffusion, DDPMConfig)
    if chain and generate.sampler in ("euler", "heun"):
        raise ValueError(f"sampler {generate.sampler!r} needs flow diffusion; with DDPM use ddim, ddpm or dpm++2m")
    if not chain and generate.sampler == "ddpm":
        raise ValueError("sampler 'ddpm' needs DDPM diffusion; with flow use euler, heun, ddim or dpm++2m")
    if generate.eta and generate.sampler != "ddim":
        raise ValueError(
            f"generate.eta = {generate.eta} has no effect on {generate.sampler}; use sampler ddim, or eta 0"
        )
    if isinstance(diffusion, DDPMConfig) and generate.steps > diffusion.steps:
        raise ValueError(
            f"generate.steps = {generate.steps}, but a DDPM chain of {diffusion.steps} levels cannot be sampled in "
            f"more; lower it"
        )
