"""MonoFormer: embed text and images into one sequence, run the transformer once, split what comes out.

    hidden = model(ids, positions, mask, images=..., times=..., places=...)   # one pass over text and images together
    logits = model.text(hidden[...])                 # only where a label or a sampled token needs them
    prediction = model.image(hidden, time, place)    # only for target images, a size; a U-Net's needs `skips` too

Knows nothing of noise, losses or sampling: times are what `Path.network_time` returns.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from monoformer.batch import ImageSlots
from monoformer.config.model import ModelConfig
from monoformer.model.attention import KVCache, Mask, View
from monoformer.model.patches import ImageHead, PatchEmbedding, VisionEmbedding, positions_2d
from monoformer.model.timestep import TimeEmbedding, TimeToken
from monoformer.model.transformer import Condition, Route, Transformer
from monoformer.model.unet import Skips

OFFICIAL_DEVIATIONS = {
    "patches.linear.weight": 0.0,
    "time_token.input.weight": 0.0,
    "time_token.output.weight": 0.0,
    "patches.modulation.linear.weight": 0.0,
    "time.input.weight": 0.02,
    "time.output.weight": 0.02,
    "image_head.modulation.linear.weight": 0.02,
    "image_head.linear.weight": 0.02,
}
"""Deviations that MonoFormer's released code gives new image parts beside a language model. Two layers at zero, one
behind the other, get no gradient, so that its time token learns a constant: the time enters through the head alone."""


class Place(NamedTuple):
    """Where N images of one size sit in the sequence."""

    row: Tensor
    """(N,) row."""
    start: Tensor
    """(N,) index of the first patch token."""
    grid: tuple[int, int]
    """Height and width in patches."""

    @classmethod
    def of(cls, slots: ImageSlots) -> "Place":
        """Where the blocks of a batch's image slots sit."""
        return cls(slots.row, slots.start, slots.grid)

    @property
    def tokens(self) -> int:
        """Patch tokens P of one image."""
        return self.grid[0] * self.grid[1]

    def columns(self) -> Tensor:
        """(N, P) index of every patch token in its row."""
        return self.start[:, None] + torch.arange(self.tokens, device=self.start.device)


class MonoFormer(nn.Module):
    """One set of weights that writes and draws (MonoFormer, section 3; Transfusion, section 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocabulary < 1:
            raise ValueError("model.vocabulary is 0; it is set from the tokenizer before the network is built")
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.time = TimeEmbedding(config.width)
        self.time_token = TimeToken(config.width) if config.time == "projected_token" else nn.Identity()
        self.patches = PatchEmbedding(config)
        self.vision = VisionEmbedding(config) if config.vision_width else None
        self.transformer = Transformer(config)
        self.text_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.image_head = ImageHead(config)
        self.tie()

    def tie(self) -> None:
        """Make the text head share the embedding; again after weights were replaced (to_empty, assign)."""
        if self.config.tie_embeddings:
            self.text_head.weight = self.tokens.weight

    @torch.no_grad()
    def initialize(
        self,
        generator: torch.Generator,
        *,
        only: Collection[str] | None = None,
        part: Callable[[Tensor, Tensor], Tensor] = lambda whole, parameter: whole,
        official: bool = False,
    ) -> None:
        """Draw the weights: token embedding normal 1, text head 0.02, matrices 1 / sqrt(fan-in), residual outputs less.

        Modulation, the image head's output and a U-Net's residual branches start at zero, norms at one. An embedding of
        0.02 would drown in what the first block adds: objects got the wrong colour for their shape (docs/log.md). With
        `only`, all but the parameters of these names stay as they are. `part(whole, parameter)` is what of a drawn
        matrix a parameter holds, where it does not hold all; one whole matrix at a time is in memory. `official` makes
        the image parts as MonoFormer's released code does (`OFFICIAL_DEVIATIONS`).
        """
        tied = self.config.tie_embeddings  # then it is a head as well, and its logits must start small
        deviations = {"tokens.weight": 0.02 if tied else 1.0, "text_head.weight": 0.02}
        deviations |= OFFICIAL_DEVIATIONS if official else {}
        output = "linear" if self.config.image_patches == "linear" else "decoder.output"
        zero = ("modulation.linear.weight", f"image_head.{output}.weight", ".second.weight", ".bias")
        for name, parameter in self.named_parameters():
            if only is not None and name not in only:
                continue
            if name.endswith(zero) and name not in deviations:
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                deviation = deviations.get(name, parameter.shape[1:].numel() ** -0.5)
                if name.endswith(("attention.output.weight", "mlp.down.weight")):
                    deviation /= (2 * self.config.layers) ** 0.5
                noise = torch.randn(parameter.shape, generator=generator) * deviation
                parameter.copy_(part(noise, parameter))

    def give_vision(self, config: ModelConfig) -> None:
        """Add the projection of a vision encoder's features, without weights yet; `config` has width and grid."""
        assert self.vision is None, "the model has such a projection already"
        with torch.device("meta"):
            self.vision = VisionEmbedding(config)
        self.config = replace(self.config, vision_width=config.vision_width, vision_grid=config.vision_grid)

    def embed(
        self, ids: Tensor, images: Sequence[Tensor], times: Sequence[Tensor], places: Sequence[Place]
    ) -> tuple[Tensor, Condition | None, list[Skips]]:
        """Ids (B, T), latents (N, C, h, w), network times (N,) a size -> (B, T, D), who is modulated by what, skips."""
        x = self.tokens(ids)
        skips: list[Skips] = []
        vectors: list[Tensor] = []
        index = torch.zeros_like(ids)
        flat = x.flatten(0, 1)
        for latents, time, place in zip(images, times, places, strict=True):
            vector = self.time(time)  # (N, D)
            where = place.row[:, None] * ids.shape[1] + place.columns()  # (N, P)
            tokens, kept = self.patches(latents, vector)
            skips.append(kept)
            flat = flat.index_copy(0, where.flatten(), tokens.flatten(0, 1).to(flat.dtype))
            if self.config.has_time_token:
                flat = flat.index_copy(0, where[:, 0] - 1, self.time_token(vector).to(flat.dtype))
            number = sum(len(v) for v in vectors) + 1 + torch.arange(len(vector), device=ids.device)
            index.view(-1)[where] = number[:, None]
            vectors.append(vector)
        condition = Condition(torch.cat(vectors), index) if vectors and self.config.time == "adaln" else None
        return flat.view_as(x), condition, skips

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Mask | None,
        *,
        images: Sequence[Tensor] = (),
        times: Sequence[Tensor] = (),
        places: Sequence[Place] = (),
        features: Sequence[Tensor] = (),
        seen: Sequence[Place] = (),
        view: View | None = None,
        skips: list[Skips] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of one pass over text and images together.

        `features` (N, P, E) are what a vision encoder makes of the pictures at `seen`, a size as `images` are. A list
        given as `skips` receives, a size, what a U-Net's image head needs of its encoder.
        """
        x, condition, kept = self.embed(ids, images, times, places)
        for own, place in zip(features, seen, strict=True):
            assert self.vision is not None, "the model has no projection of a vision encoder's features"
            where = (place.row[:, None] * ids.shape[1] + place.columns()).flatten()
            tokens = self.vision(own).flatten(0, 1)
            x = x.flatten(0, 1).index_copy(0, where, tokens.to(x.dtype)).view_as(x)
        if skips is not None:
            skips += kept
        has_images = bool(places or seen)
        route = self._route(ids, places, seen) if self.config.experts == "modality" and has_images else None
        again = self._positions(x, places) if self.config.image_positions == "every_layer" and places else None
        hidden: Tensor = self.transformer(x, positions, mask, condition=condition, view=view, route=route, again=again)
        return hidden

    def _positions(self, x: Tensor, places: Sequence[Place]) -> Tensor:
        """2-D positions of the patches in a sequence like x (B, T, D); 0 elsewhere."""
        found = torch.zeros_like(x)
        for place in places:
            found[place.row[:, None], place.columns()] = positions_2d(place.grid, x.shape[-1], x.device).to(x.dtype)
        return found

    def _route(self, ids: Tensor, places: Sequence[Place], seen: Sequence[Place]) -> Route:
        """Patches, their time tokens and an encoder's features go to the image experts.

        Their number is known, so the device need not be asked for it: a stable sort parts the tokens.
        """
        is_image = torch.zeros_like(ids, dtype=torch.bool)
        count = sum(len(place.row) * place.tokens for place in [*places, *seen])
        count += sum(len(place.row) for place in places) if self.config.has_time_token else 0
        for place in [*places, *seen]:
            is_image[place.row[:, None], place.columns()] = True
        for place in places if self.config.has_time_token else ():
            is_image[place.row, place.start - 1] = True
        order = is_image.flatten().argsort(stable=True)
        text, image = order.split([ids.numel() - count, count])
        return Route(text=text, image=image)

    def text(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits: Tensor = self.text_head(hidden)
        return logits

    def image(self, hidden: Tensor, time: Tensor, place: Place, skips: Skips = ()) -> Tensor:
        """Predictions (N, C, h, w) for images of one size at their network times (N,), with their own skips."""
        tokens = hidden[place.row[:, None], place.columns()]  # (N, P, D)
        prediction: Tensor = self.image_head(tokens, self.time(time), place.grid, skips)
        return prediction

    def cache(self, slots: int, capacity: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """An empty KV cache of this model's shape; `dtype` None: that of the weights, but fp32 on a CPU.

        There a single query takes up to seven times as long in bf16 (8 rows of 269 keys: 1.36 and 0.18 ms).
        """
        config, weight = self.config, self.tokens.weight
        if dtype is None:
            dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        return KVCache.empty(
            config.layers, slots, config.kv_heads, capacity, config.head_width, device=weight.device, dtype=dtype
        )

    def image_parameters(self) -> list[nn.Parameter]:
        """What only images touch; a pass without images still gives them a zero gradient (DESIGN 4)."""
        return [p for name, p in self.named_parameters() if not is_text(name)]


def is_text(name: str) -> bool:
    """Whether the parameter of that name is one that text passes through."""
    inside = name.startswith("transformer.") and not any(
        part in name for part in (".modulation.", ".image.", "image_norm")
    )
    return inside or name in ("tokens.weight", "text_head.weight")
