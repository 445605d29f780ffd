"""Presets of text: alone, or beside drawn scenes in as many tokens."""

from dataclasses import replace

from monoformer.config.data import MixtureData, ScenesData, SequenceConfig, TextData, TokenizerConfig
from monoformer.config.generate import GenerateConfig
from monoformer.config.run import RunConfig
from monoformer.presets.small import monoformer_mini, scenes_quick

BOOKS = TextData(files=("data/text/books",), characters=240)
"""Public-domain books in documents that fit a row of 252 tokens, whatever small vocabulary they are written in."""


def text_quick() -> RunConfig:
    """A small language model in the shape of scenes-quick: books, and captions and stories of the drawn world.

    monoformer train text-quick --data.sources.0.files BOOKS/
    Two CPU cores, about as long as scenes-quick. Not measured yet.
    """
    base = scenes_quick()
    assert isinstance(base.data, ScenesData)
    words = replace(base.data, draw=0.0, describe=0.0, edit=0.0, question=0.0, story=1.0, caption=1.0)
    return replace(base, name="text-quick", data=MixtureData(sources=(BOOKS, words), weights=(0.5, 0.5)))


def scenes_text() -> RunConfig:
    """scenes-quick with books as a tenth of its documents (MonoFormer's 9 : 1), in place of its stories.

    monoformer train scenes-text --data.sources.1.files BOOKS/
    Two CPU cores, about as long as scenes-quick. Not measured yet.
    """
    base = scenes_quick()
    assert isinstance(base.data, ScenesData)
    drawn = replace(base.data, story=0.0)
    return replace(base, name="scenes-text", data=MixtureData(sources=(drawn, BOOKS), weights=(0.9, 0.1)))


def shakespeare() -> RunConfig:
    """Shakespeare by characters, in the size of nanoGPT's run on a CPU: the text path alone beside a known figure.

    monoformer train shakespeare --data.files INPUT.txt    (reproduce/shakespeare.sh)
    Two CPU cores, some minutes. 1.53 nats a character of the last tenth (nanoGPT's run of this size: 1.88).
    """
    base = scenes_quick()
    return replace(
        base,
        name="shakespeare",
        model=replace(base.model, width=128, heads=4, kv_heads=4, mlp_width=344, context=256),
        tokenizer=TokenizerConfig(vocabulary=266),
        data=TextData(files=("data/text/tinyshakespeare.txt",), characters=254, holdout=0.0),
        sequence=SequenceConfig(row=256, window=512),
        train=replace(base.train, steps=2000, rows=3, checkpoint_every=500),
        generate=GenerateConfig(temperature=0.8),
    )


def monoformer_mini_text() -> RunConfig:
    """The text-only twin of monoformer-mini: its documents without a picture, as many of them in a step, no others.

    monoformer train monoformer-mini-text --from runs/scenes --data.sources.1.files BOOKS/    (docs/evaluate.md)
    Two CPU cores, 20 minutes of one. Reads the books at a perplexity of 7.6, `monoformer-mini` at 8.1.
    """
    base = monoformer_mini()
    assert isinstance(base.data, MixtureData)
    drawn, books, _ = base.data.sources  # in the same places, so that the books are read in the same order
    assert isinstance(drawn, ScenesData)
    words = replace(drawn, draw=0.0, describe=0.0, edit=0.0, question=0.0)
    stories = drawn.story / (drawn.draw + drawn.describe + drawn.edit + drawn.question + drawn.story)
    of_scenes, of_books, _ = base.data.weights
    return replace(
        base,
        name="monoformer-mini-text",
        data=MixtureData(sources=(words, books), weights=(of_scenes * stories, of_books)),
        sequence=replace(base.sequence, row=335),
        train=replace(base.train, rows=1),
    )
