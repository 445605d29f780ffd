"""From a data configuration to its source: the one place that knows them all.

Knows nothing of tokens or models. Invariant: the same configuration, split and seed give the same stream.
"""

from typing import assert_never

from monoformer.config.data import DataConfig, FolderData, MixtureData, ParquetData, ScenesData, TextData
from monoformer.data.images import FolderPictures, ParquetPictures
from monoformer.data.scenes import Scenes
from monoformer.data.source import Indexed, Mixture, Source, Split
from monoformer.data.text import TextFiles
from monoformer.randomness import uniform


def build_source(config: DataConfig, *, split: Split = "train", seed: int = 0) -> Source:
    """The endless stream of a configuration; ValueError where its data is missing or unusable."""
    match config:
        case ScenesData():
            return Indexed(Scenes(config, split=split, seed=seed).document)
        case FolderData():
            return Indexed(FolderPictures(config, split=split, seed=seed).document)
        case ParquetData():
            return Indexed(ParquetPictures(config, split=split, seed=seed).document)
        case TextData():
            return Indexed(TextFiles(config, split=split, seed=seed).document)
        case MixtureData():
            # Every source has a seed of its own, or two scene sources would draw the same scenes.
            sources = [
                build_source(source, split=split, seed=int(uniform(seed, place, "source") * 2**31))
                for place, source in enumerate(config.sources)
            ]
            return Mixture(sources, weights=config.weights, seed=seed)
        case _:
            assert_never(config)


def build_held_out(config: DataConfig, *, seed: int = 0) -> Source:
    """The stream of the test split; that of the training split where the data holds nothing out."""
    try:
        return build_source(config, split="test", seed=seed)
    except ValueError:
        return build_source(config, split="train", seed=seed)
