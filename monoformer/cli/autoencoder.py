"""train autoencoder: a small autoencoder of one's own; resumes by itself."""

from rich.console import Console

from monoformer.cli.options import parse, say_go_on
from monoformer.config.autoencoder import AutoencoderRun
from monoformer.device import choose
from monoformer.presets import autoencoder
from monoformer.train.autoencoder import AutoencoderTrainer
from monoformer.train.parallel import processes
from monoformer.train.reconstruction import build_sample, release


def train_autoencoder(arguments: list[str]) -> None:
    """Train to the end, resuming what the folder holds, and write the folder that `--autoencoder.path` takes."""
    config = parse(AutoencoderRun, arguments, command="train autoencoder", default=autoencoder())
    with processes(choose(config.train.device)) as ranks:
        if ranks.world > 1:
            raise ValueError(f"an autoencoder is trained by one process, but torchrun started {ranks.world}")
    console = Console()
    trainer = AutoencoderTrainer(config, sample=build_sample(config) if config.train.sample_every else None)
    count = sum(p.numel() for p in trainer.network.parameters())
    console.print(f"[bold]{config.name}[/bold] in {config.path} on {trainer.device}: {count / 1e6:.2f}M parameters")
    if not trainer.run():
        say_go_on(console, ["train", "autoencoder", *arguments])
        return
    folder = release(config, trainer.state.ema.weights)
    console.print(f"done: {folder}\n  monoformer train PRESET --autoencoder.path {folder}")
