"""The training loop's settings."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from monoformer.config.bounds import check_numbers, check_weights
from monoformer.config.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW for every parameter."""

    rate: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""

    def __post_init__(self) -> None:
        check_numbers(self, "rate", "weight_decay", room="train.optimizer", least=0)
        check_numbers(self, "betas", room="train.optimizer", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for hidden matrices (orthogonalised momentum), AdamW for embeddings, heads, norms and biases."""

    rate: float = 0.02
    """Peak learning rate of the hidden matrices."""
    momentum: float = 0.95
    """Momentum of the hidden matrices."""
    adamw_rate: float = 2e-3
    """Peak learning rate of everything else."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""

    def __post_init__(self) -> None:
        check_numbers(self, "rate", "adamw_rate", "weight_decay", room="train.optimizer", least=0)
        check_numbers(self, "momentum", "betas", room="train.optimizer", least=0, below=1)


OptimizerConfig: TypeAlias = AdamWConfig | MuonConfig


Matrix: TypeAlias = Literal["q", "k", "v", "output", "gate", "up", "down"]
"""A projection of attention (the first four) or of the MLP."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters beside matrices that stay as they are; the finished model folder has them merged."""

    rank: int = 0
    """Rank of the adapters; 0: none, and every weight is trained."""
    alpha: int = 16
    """What they add is multiplied by alpha / rank."""
    matrices: tuple[Matrix, ...] = ("q", "k", "v", "output", "gate", "up", "down")
    """Which matrices of every block get one."""
    images: Literal["adapters", "whole"] = "adapters"
    """whole: what images alone pass through (patches, time, image head, image experts) and the new tokens' rows are
    trained themselves, as they must be when they are new: in a run from a language model."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 1 or not self.matrices:
            raise ValueError("train.lora.rank must be 0 or more, alpha at least 1, and matrices must name some")
        unused = (LoRAConfig.alpha, LoRAConfig.matrices, LoRAConfig.images)
        if not self.rank and (self.alpha, self.matrices, self.images) != unused:
            raise ValueError("train.lora does nothing at rank 0; give --train.lora.rank 8, or leave the others alone")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast and how often."""

    steps: int = 1000
    """Optimiser steps."""
    rows: int = 16
    """Packed rows in one optimiser step, over all processes and passes."""
    pass_rows: int = 0
    """Rows in one forward pass of one process; 0: all of its rows. Smaller saves memory (gradient accumulation)."""
    optimizer: OptimizerConfig = MuonConfig()
    """AdamW or Muon."""
    warmup: int = 100
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """After warm-up: constant; constant, then linear decay to `final_rate`; or cosine decay to it."""
    decay: float = 0.4
    """Share of the steps, at the end, over which `linear` decays."""
    final_rate: float = 0.0
    """Last learning rate as a share of the peak."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    text_weight: float = 1.0
    """Weight of the text loss."""
    image_weight: float = 1.0
    """Weight of the image loss."""
    freeze: Literal["none", "text"] = "none"
    """text: what text passes through keeps the bits of the model the run started from, embedding and head but for new
    tokens included; needs `model.experts = modality`. The embedding and the head then have no weight decay."""
    starting_values: Literal["ours", "official"] = "ours"
    """How new image parts start. official: as in MonoFormer's released code, patches' projection and time token at 0,
    time embedding and head normal, deviation 0.02. A run from a model that has all its weights has nothing new."""
    lora: LoRAConfig = LoRAConfig()
    """Adapters in the place of whole matrices. With `freeze = text` they sit in the image experts alone."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: matrix products in bfloat16 by autocast; weights, norms, loss and optimiser stay fp32. auto: bf16 where the
    device is faster with it (CUDA, CPUs with AMX and others that are seen to be), else fp32; for the whole of a run."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How processes share the run, and what blocks keep."""
    readers: int = 2
    """Threads of every process that decode the pictures of its rows, and as many for each source that read files. The
    order of documents is the same for any number; where many processes share a machine, so do their readers."""
    bad_steps: int = 20
    """Steps whose gradient is not finite are left out and written down; after so many the run stops."""
    spike_factor: float = 3.0
    """A loss of so many times its running mean (over 100 steps) is said to be a spike, and counts in metrics.jsonl
    (`spikes`, a step). 0: none is."""
    skip_limit: float = 0.01
    """Largest share of a source's documents that may be skipped because they cannot be used (a broken picture, no
    caption, longer than a row, ...). Beyond it, from 20 skipped documents on, the run ends and says why; beyond half of
    those among the stream's last 1,000, too. 1: never."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = True
    """Whether metrics and sample pictures also go to the run's tensorboard/ folder, where the package is installed."""
    wandb: str = ""
    """Project of Weights & Biases that the metrics and sample pictures also go to; empty: none. `wandb offline`, typed
    once, keeps its files in the run's folder until `wandb sync`."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    sample_every: int = 0
    """Steps between two grids of sample pictures; 0 draws none."""
    evaluate_every: int = 0
    """Steps between two evaluations by the suites that the data fits (`monoformer evaluate`); 0: none."""
    evaluate_count: int = 64
    """Held-out items of each suite in these evaluations."""

    def __post_init__(self) -> None:
        counts = ("steps", "rows", "readers", "bad_steps", "log_every", "checkpoint_every", "keep", "evaluate_count")
        check_numbers(self, *counts, room="train", least=1)
        amounts = ("pass_rows", "warmup", "final_rate", "clip", "spike_factor", "sample_every", "evaluate_every")
        check_numbers(self, *amounts, room="train", least=0)
        check_numbers(self, "skip_limit", room="train", least=0, most=1)
        check_numbers(self, "decay", room="train", above=0, most=1)
        check_weights(self, "text_weight", "image_weight", room="train")
        if self.schedule == "constant" and self.final_rate:
            raise ValueError(
                f"train.final_rate = {self.final_rate} has no effect with train.schedule = constant; set it to 0"
            )
        if self.schedule != "linear" and self.decay != TrainConfig.decay:
            raise ValueError(
                f"train.decay = {self.decay} has no effect with train.schedule = {self.schedule}; leave it at "
                f"{TrainConfig.decay}, or take the schedule linear"
            )
        if self.warmup > self.steps:
            raise ValueError(
                f"train.warmup = {self.warmup} would not end within train.steps = {self.steps}; lower train.warmup"
            )
        if self.pass_rows and self.rows % self.pass_rows:
            raise ValueError(
                f"train.pass_rows must divide train.rows, but {self.pass_rows} does not divide {self.rows}"
            )

    @property
    def keeps_rows(self) -> bool:
        """Whether the embedding and the text head are trained in some of their rows alone."""
        return self.freeze == "text" or (self.lora.rank > 0 and self.lora.images == "whole")


SAMPLES = 12
"""Prompts drawn at intervals while a run goes on."""


def shown_slots(config: TrainConfig) -> int:
    """Contexts that samples and scores need at once while a run goes on; 0: there are none."""
    return max(2 * SAMPLES * bool(config.sample_every), max(2, config.evaluate_count) * bool(config.evaluate_every))
