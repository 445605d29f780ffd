"""One readable step over text and images together.

Knows nothing of sampling or of files: `sample`, called now and then with the averaged weights, is a function that
somebody else passes in, and the loop around the step is `loop.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from monoformer.autoencoder import Autoencoder
from monoformer.batch import Batch
from monoformer.config.run import RunConfig
from monoformer.data.loader import Loader
from monoformer.device import peak_speed
from monoformer.diffusion.objectives import Objective
from monoformer.model.attention import build_mask
from monoformer.model.monoformer import MonoFormer
from monoformer.train.breakdown import Breakdown
from monoformer.train.checkpoint import TrainState
from monoformer.train.loop import Loop, Numbers, Sample, Scores
from monoformer.train.loss import PassLosses, pass_losses
from monoformer.train.operations import Operations, seen_in
from monoformer.train.optim import EMA, build_optimizers
from monoformer.train.parallel import ALONE, Ranks, accumulating, replicated, rows_of_pass
from monoformer.train.precision import computes_in_bf16
from monoformer.vision import VisionEncoder


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a trainer works with."""

    config: RunConfig
    model: MonoFormer
    objective: Objective
    autoencoder: Autoencoder
    loader: Loader[Batch]
    device: torch.device
    vision: VisionEncoder | None = None
    ranks: Ranks = ALONE
    """This process among all that train together."""
    sources: tuple[str, ...] = ()
    """Names of what the documents come from, as the batches count them."""


class Trainer:
    """Trains one model on one stream of batches."""

    def __init__(self, parts: Parts, *, sample: Sample | None = None, scores: Scores | None = None) -> None:
        self.parts, self.config, self.train = parts, parts.config, parts.config.train
        self.model = parts.model
        self.state = TrainState(
            model=self.model, ema=EMA(self.model), optimizers=build_optimizers(self.model, self.train)
        )
        self.breakdown = Breakdown(parts.sources, device=parts.device)
        self.loop: Loop[Batch] = Loop(
            self.config,
            self.state,
            describe=describe,
            sample=sample,
            scores=scores,
            breakdown=self.breakdown,
            ranks=parts.ranks,
        )
        self.network = replicated(PassLosses(self.model, self.losses), self.train.parallel, parts.ranks)
        self.bf16 = computes_in_bf16(self.train, parts.device)
        self.operations = Operations(self.model)

    def train_step(self, passes: list[Batch]) -> Numbers:
        """One optimiser step over one or more passes of packed rows; the losses, over all processes."""
        ranks = self.parts.ranks
        tokens, images = ranks.total(sum(batch.labelled for batch in passes), sum(batch.targets for batch in passes))
        tokens, images = max(1, tokens), max(1, images)
        text_total, image_total = 0.0, 0.0
        for number, batch in enumerate(passes, start=1):
            with accumulating(self.network, last=number == len(passes)):
                text, image = self.network(batch.to(self.parts.device))
                text, image = text / tokens, image / images
                loss = self.train.text_weight * text + self.train.image_weight * image
                (loss * ranks.world).backward()  # processes average their gradients, but these are to be summed
            text_total, image_total = text_total + text.item(), image_total + image.item()
        text_total, image_total = ranks.total(text_total, image_total)
        return {"text_loss": text_total, "image_loss": image_total, "gradient_norm": self.loop.descend()}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of the text and image losses of one pass, under autocast where the run asks for it."""
        with torch.autocast(self.parts.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return pass_losses(
                self.model,
                batch,
                build_mask(batch),
                objective=self.parts.objective,
                autoencoder=self.parts.autoencoder,
                vision=self.parts.vision,
                seed=self.config.seed,
                breakdown=self.breakdown,
            )

    def run(self) -> bool:
        """Train to the last step, resuming what the folder holds. False: stopped early, saved, ready to go on."""
        ranks = self.parts.ranks
        passes = self.train.rows // (ranks.world * rows_of_pass(self.train.rows, self.train.pass_rows, ranks.world))
        peak = ranks.world * peak_speed(self.parts.device, bf16=self.bf16)  # before the loader's thread is at work

        def counted(read: list[Batch]) -> tuple[Numbers, Numbers]:
            means, totals = count(read, ranks=ranks)
            (operations,) = ranks.total(sum(self.operations.count(seen_in(batch)) for batch in read))
            return means, {**totals, "mfu": operations / peak}

        return self.loop.run(self.parts.loader, self.train_step, counted, passes=passes)


def count(passes: list[Batch], *, ranks: Ranks = ALONE) -> tuple[Numbers, Numbers]:
    """What a step read on all processes: share of padding, documents, and tokens and target images to be rates."""
    cells, padding, images, documents = ranks.total(
        sum(batch.ids.numel() for batch in passes),
        sum(batch.padding * batch.ids.numel() for batch in passes),
        sum(batch.targets for batch in passes),
        sum(batch.documents for batch in passes),
    )
    rates = {"tokens_per_second": cells - padding, "images_per_second": images}
    return {"padding": padding / cells, "documents": documents}, rates


def describe(line: Numbers) -> str:
    """The progress bar's numbers."""
    losses = f"text {line['text_loss']:.3f}  image {line['image_loss']:.3f}"
    return f"{losses}  {line['images_per_second']:.0f} images/s"


def empty_copy(parts: Parts) -> MonoFormer:
    """A network of the same shape, for weights to be loaded into: whole and plain, however the run's own is spread."""
    with torch.device("meta"):
        model = MonoFormer(parts.config.model)
    model.to_empty(device=parts.device)
    model.tie()
    return model.eval()
