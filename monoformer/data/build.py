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


def check_named(config: DataConfig, *, where: str = "data") -> None:
    """Refuse data whose files nobody named, before anything large is loaded."""
    match config:
        case FolderData(root=""):
            raise ValueError(f"{where}.root is empty; give a folder of pictures, e.g. --{where}.root pictures/")
        case ParquetData(files=()):
            raise ValueError(f"{where}.files is empty; give parquet files, e.g. --{where}.files train.parquet")
        case TextData(files=()):
            raise ValueError(f"{where}.files is empty; give text files or folders of .txt, e.g. --{where}.files books/")
        case MixtureData(sources=sources):
            for place, source in enumerate(sources):
                check_named(source, where=f"{where}.sources.{place}")
        case _:
            pass


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
