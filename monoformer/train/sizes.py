"""The sizes of a run's pictures: what its sources leave open is the model's, and what does not fit is refused.

Knows nothing of pixels. Invariant: data that passes has only sizes that the model is trained to draw.
"""

from dataclasses import replace
from typing import assert_never

from monoformer.config.data import (
    DataConfig,
    FolderData,
    MixtureData,
    ParquetData,
    PicturesConfig,
    ScenesData,
    SourceConfig,
    TextData,
    single_sources,
)
from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig
from monoformer.config.sources import CacheData, ChatData, InterleavedData, Shape, StreamData
from monoformer.data.cache import read_record


def sized(data: DataConfig, model: ModelConfig) -> DataConfig:
    """The same data with the model's sizes where a source of pictures leaves them open."""
    if isinstance(data, MixtureData):
        return replace(data, sources=tuple(sized_source(source, model) for source in data.sources))
    return sized_source(data, model)


def sized_source(source: SourceConfig, model: ModelConfig) -> SourceConfig:
    """`sized` for one source."""
    match source:
        case FolderData() | ParquetData() | ChatData() | InterleavedData() | StreamData():
            buckets = source.buckets or (model.image_sizes if source.shape == "bucket" else ())
            return replace(source, size=source.size or model.image_sizes[0][0], buckets=buckets)
        case ScenesData() | TextData() | CacheData():
            return source
        case _:
            assert_never(source)


def picture_sizes(data: DataConfig) -> set[tuple[int, int]]:
    """Heights and widths in pixels of the pictures that a configuration's data holds."""
    match data:
        case ScenesData(size=size):
            return {(size, size)} if data.draw or data.describe or data.edit or data.question else set()
        case FolderData() | ParquetData() | ChatData() | InterleavedData() | StreamData():
            return set(data.buckets) if data.shape == "bucket" else {(data.size, data.size)}
        case TextData():
            return set()
        case CacheData(root=root):
            return set(read_record(root).sizes)
        case MixtureData(sources=sources):
            return {size for source in sources for size in picture_sizes(source)}
        case _:
            assert_never(data)


def picture_shape(data: DataConfig, *, before: Shape) -> Shape:
    """How most of the data's pictures get their size; as `before` where no source of theirs says it."""
    weights = data.weights if isinstance(data, MixtureData) else (1.0,)
    total: dict[Shape, float] = {}
    for source, weight in zip(single_sources(data), weights, strict=True):
        own = read_record(source.root).encoding.source if isinstance(source, CacheData) else source
        if isinstance(own, PicturesConfig):
            total[own.shape] = total.get(own.shape, 0.0) + weight
    return max(total, key=lambda shape: total[shape], default=before)


def check_sizes(config: RunConfig) -> None:
    """Refuse data whose pictures the model would not be asked to draw, or that do not divide into patches."""
    cell = config.model.cell
    for height, width in sorted(picture_sizes(config.data)):
        said = f"{height}" if height == width else f"{height}x{width}"
        if height % cell or width % cell:
            raise ValueError(
                f"pictures of {said} pixels do not divide into patches of {cell}; choose multiples of {cell}"
            )
        if (height, width) not in config.model.image_sizes:
            raise ValueError(
                f"the data's pictures are {height}x{width} but model.image_sizes is {config.model.image_sizes}; "
                f"add --model.image-sizes {height} {width} or change data.size"
            )
