"""A network of diffusers behind a small text encoder, trained and drawing as ours is, for baselines.py.

`unet` is Stable Diffusion's UNet2DConditionModel. `dit` is a diffusion transformer whose blocks also attend to the
caption (PixArt, arXiv 2310.00426), since DiTTransformer2DModel knows classes and no captions. Invariant: captions,
times, noise and the null context are those that our own network gets from the same batch, and a picture starts from
the noise of its seed.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import diffusers
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from monoformer.autoencoder import Autoencoder
from monoformer.batch import Batch, ImageSlots
from monoformer.config.generate import GenerateConfig
from monoformer.config.model import ModelConfig
from monoformer.diffusion.objectives import Estimate, Objective, flatten_losses
from monoformer.document import Document, Image, Text
from monoformer.generate.guidance import null_documents
from monoformer.generate.image import Drawing
from monoformer.randomness import generator
from monoformer.sequence import Sequencer
from monoformer.tokenizer import Tokenizer
from monoformer.train.loss import latents_of, moments_of, noise_of, times_of

Kind: TypeAlias = Literal["unet", "dit"]
MULTIPLES = (1, 2, 4, 4)
"""Stable Diffusion's widths of the levels, as multiples of the first; Stable Diffusion XL has the first three."""
COARSEST, ATTENDS = 8, 16
"""Sides of the coarsest level and of the finest with attention. At 32x32 the first level has none, as in Stable
Diffusion XL: with it a step takes three times as long."""
NEAR = 0.1
"""Largest difference in parameters, as a share."""


class TextEncoder(nn.Module):
    """Token embeddings, sinusoidal positions and two transformer layers, trained with the network."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.tokens = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, ids: Tensor, known: Tensor) -> Tensor:
        """ids (N, L), known (N, L) bool -> (N, L, width)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        places = diffusers.models.embeddings.get_timestep_embedding(places, self.width, max_period=1000)
        states: Tensor = self.layers(self.tokens(ids) + places, src_key_padding_mask=~known)
        return states


class Painter(nn.Module):
    """Noised pictures, times and captions -> what the objective asks for."""

    def __init__(self, network: nn.Module, text: TextEncoder) -> None:
        super().__init__()
        self.network, self.text = network, text

    def forward(self, x: Tensor, time: Tensor, captions: Sequence[Tensor]) -> Tensor:
        """x (N, C, h, w), time (N,) as `Path.network_time` gives it, token ids (L,) each -> (N, C or 2 C, h, w)."""
        ids = nn.utils.rnn.pad_sequence(list(captions), batch_first=True)
        lengths = torch.tensor([len(own) for own in captions], device=ids.device)
        known = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        states = self.text(ids, known)
        prediction: Tensor = self.network(
            x, timestep=time, encoder_hidden_states=states, encoder_attention_mask=known, return_dict=False
        )[0]
        return prediction


def build_painter(kind: Kind, shape: ModelConfig, *, vocabulary: int, parameters: int, seed: int) -> Painter:
    """A painter of that kind with so many parameters, at most a tenth away; its weights drawn from the seed.

    `shape` is our network's: the sides and channels of latents, patch and layers of `dit`, and its width, of which the
    text encoder has half, or as near to that as the number of parameters allows.
    """
    widths = range(2, 1025, 2) if kind == "unet" else range(4, 257, 4)
    for text in sorted(range(16, shape.width + 1, 16), key=lambda own: abs(own - shape.width / 2)):

        def size(width: int, text: int = text) -> int:
            with torch.device("meta"):
                return size_of(_painter(kind, shape, width, TextEncoder(vocabulary, text)))

        near = bisect_left(widths, parameters, key=size)
        width = min(widths[max(0, near - 1) : near + 1], key=lambda own: abs(size(own) - parameters))
        if abs(size(width) - parameters) <= NEAR * parameters:
            break
    else:
        raise ValueError(f"no {kind} has about {parameters} parameters at these sides; take a larger --model.width")
    with torch.random.fork_rng(devices=[]):  # diffusers draws weights from the global generator
        torch.manual_seed(seed)
        painter = _painter(kind, shape, width, TextEncoder(vocabulary, text))
    if kind == "unet":
        painter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return painter


def _painter(kind: Kind, shape: ModelConfig, width: int, text: TextEncoder) -> Painter:
    sides = (shape.image_sizes[0][0] // shape.down, shape.image_sizes[0][1] // shape.down)
    network: Any
    if kind == "unet":
        levels = min(len(MULTIPLES), max(2, (min(sides) // COARSEST).bit_length()))
        attends = [min(sides) >> level <= ATTENDS for level in range(levels)]
        network = diffusers.UNet2DConditionModel(
            sample_size=sides,
            in_channels=shape.channels,
            out_channels=shape.predicted_channels,
            block_out_channels=tuple(width * multiple for multiple in MULTIPLES[:levels]),
            down_block_types=tuple("CrossAttnDownBlock2D" if own else "DownBlock2D" for own in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if own else "UpBlock2D" for own in reversed(attends)),
            cross_attention_dim=text.width,
            attention_head_dim=2,  # the number of heads, in spite of its name
            norm_num_groups=2,
        )
        last = network.conv_out
    else:
        network = diffusers.PixArtTransformer2DModel(
            num_attention_heads=shape.heads,
            attention_head_dim=width,
            cross_attention_dim=shape.heads * width,
            in_channels=shape.channels,
            out_channels=shape.predicted_channels,
            num_layers=shape.layers,
            sample_size=sides[0],
            patch_size=shape.patch,
            caption_channels=text.width,
            use_additional_conditions=False,
        )
        last = network.proj_out
    for parameter in last.parameters():  # as both papers begin
        nn.init.zeros_(parameter)
    return Painter(network, text)


def size_of(network: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains it: matrices and kernels of the blocks, but not what lies before and behind these."""
    return parameter.ndim in (2, 4) and any(part in name for part in ("_block", "layers."))


def captions_of(batch: Batch, slots: ImageSlots, tokenizer: Tokenizer) -> dict[int, Tensor]:
    """By noised block, what it is drawn from: the token ids before it in its document. Without those behind pictures.

    Dropping for guidance has happened: where the text was dropped, the caption is empty but for its frame.
    """
    found: dict[int, Tensor] = {}
    for block in slots.noised.nonzero()[:, 0].tolist():
        row, start = int(slots.row[block]), int(slots.start[block])
        before = torch.arange(batch.ids.shape[1], device=batch.ids.device) < start
        seen = before & (batch.document[row] == batch.document[row, start]) & (batch.private[row] == 0)
        ids = batch.ids[row][seen]
        if not bool((ids == tokenizer.patch).any()):
            found[block] = ids[ids != tokenizer.time]
    return found


def painter_losses(
    painter: Painter, batch: Batch, tokenizer: Tokenizer, *, objective: Objective, autoencoder: Autoencoder, seed: int
) -> Tensor:
    """Loss of every picture of a batch that is drawn from text alone, noised as our own network gets it (N,)."""
    captions = [captions_of(batch, slots, tokenizer) for slots in batch.images]
    targets = [torch.tensor(list(own), device=batch.ids.device, dtype=torch.long) for own in captions]
    with torch.no_grad():
        moments = [moments_of(slots, autoencoder) for slots in batch.images]
    x_0 = [latents_of(*parts, seed) for parts in zip(batch.images, targets, moments, strict=True)]
    t = [
        times_of(slots, where, objective, seed, positions=x.shape[-2] * x.shape[-1])
        for slots, where, x in zip(batch.images, targets, x_0, strict=True)
    ]
    noise = [noise_of(slots, where, x, seed) for slots, where, x in zip(batch.images, targets, x_0, strict=True)]

    def predict(x_t: list[Tensor], t: list[Tensor]) -> list[Tensor]:
        return [
            painter(x, objective.path.network_time(time), list(own.values())) if own else x
            for x, time, own in zip(x_t, t, captions, strict=True)
        ]

    return flatten_losses(objective.loss(predict, x_0, t, noise), batch.ids.device)


@dataclass(frozen=True, kw_only=True)
class PainterPipeline:
    """A trained painter behind our own samplers and guidance; draws and does nothing else."""

    painter: Painter
    objective: Objective
    autoencoder: Autoencoder
    sequencer: Sequencer
    settings: GenerateConfig
    size: tuple[int, int]
    """(height, width) of its pictures."""
    device: torch.device

    def generate_images(self, prompts: Sequence[str], *, seed: Sequence[int]) -> list[PILImage.Image]:
        """A picture for each prompt."""
        documents = [Document((Text(prompt, "user"),)) for prompt in prompts]
        return [made.images[0].to_pil() for made in self.generate(documents, want="image", seed=seed)]

    @torch.no_grad()
    def generate(self, documents: Sequence[Document], *, want: Literal["image"], seed: Sequence[int]) -> list[Document]:
        """A document with one picture for each prompt."""
        drawings = dict(enumerate(self._start(*given) for given in zip(documents, seed, strict=True)))
        made: dict[int, Document] = {}
        while drawings:
            asked = {number: drawing.asked() for number, drawing in drawings.items()}
            rows = [(drawings[number], caption) for number, captions in asked.items() for caption in captions]
            estimates = iter(self._estimates(rows))
            for number, captions in asked.items():
                latent = drawings[number].advance([next(estimates) for _ in captions])
                if latent is not None:
                    pixels = self.autoencoder.decode(latent[None])[0].cpu()
                    made[number] = Document((Image(pixels=pixels, target=True),))
                    del drawings[number]
        return [made[number] for number in range(len(documents))]

    def _start(self, document: Document, seed: int) -> Drawing:
        """A drawing whose contexts are captions, from the noise that our own engine takes for the seed."""
        settings = replace(self.settings, seed=seed)
        captions = [self._caption(own) for own in (document, *null_documents(document, settings))]
        down, random = self.autoencoder.down, generator(seed, 0, "picture")
        shape = (self.autoencoder.channels, self.size[0] // down, self.size[1] // down)
        noise = torch.randn(shape, generator=random).to(self.device)
        grid = self.sequencer.grid(*self.size)
        contexts: Any = captions  # a drawing only hands them back
        return Drawing.start(contexts, noise, self.objective, settings, grid, random)

    def _caption(self, document: Document) -> Tensor:
        return torch.tensor(self.sequencer.prompt(document, opening="image").ids, device=self.device)

    def _estimates(self, rows: Sequence[tuple[Drawing, Any]]) -> list[Estimate]:
        """What the network says of every picture behind every caption, in one pass."""
        x = torch.stack([drawing.x for drawing, _ in rows])
        t = torch.tensor([drawing.t for drawing, _ in rows], device=self.device)
        prediction = self.painter(x, self.objective.path.network_time(t), [caption for _, caption in rows])
        found = self.objective.estimate(prediction, x, t)
        fractions: Sequence[Tensor | None] = [None] * len(rows)
        if found.variance_fraction is not None:
            fractions = list(found.variance_fraction)
        return [Estimate(*parts) for parts in zip(found.x_0, fractions, strict=True)]
