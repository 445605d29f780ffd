"""Drawn scenes: an endless synthetic world with exact language, an exact parser and exact scores.

`Scenes` makes the documents; `draw` and `parse` turn scenes into pixels and back; `caption`, `read_caption`,
`read_instruction` and `answer` do so for words; `matches`, `caption_is_exact`, `edit_is_exact` and `agreement` score.
Knows no model. Invariant: what is made is well made, in one split, and a function of (seed, split, index) alone.
"""

from monoformer.data.scenes.drawing import draw
from monoformer.data.scenes.instructions import (
    VERBS,
    Add,
    Instruction,
    Move,
    Recolour,
    Remove,
    Reshape,
    read_instruction,
    sample_instruction,
)
from monoformer.data.scenes.language import Description, caption, describe, read_caption
from monoformer.data.scenes.layout import sample_scene
from monoformer.data.scenes.parser import parse
from monoformer.data.scenes.questions import answer, ask
from monoformer.data.scenes.scoring import Agreement, agreement, caption_is_exact, edit_is_exact, matches
from monoformer.data.scenes.source import Describing, Drawing, Edit, Example, ExampleKind, Question, Scenes, Story
from monoformer.data.scenes.splits import Split, split_of, split_of_text
from monoformer.data.scenes.stories import tell
from monoformer.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    QUADRANTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Kind,
    Name,
    Scene,
    Thing,
    is_well_made,
    quadrant,
    relation,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "KINDS",
    "QUADRANTS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "VERBS",
    "Add",
    "Agreement",
    "Describing",
    "Description",
    "Drawing",
    "Edit",
    "Example",
    "ExampleKind",
    "Instruction",
    "Kind",
    "Move",
    "Name",
    "Question",
    "Recolour",
    "Remove",
    "Reshape",
    "Scene",
    "Scenes",
    "Split",
    "Story",
    "Thing",
    "agreement",
    "answer",
    "ask",
    "caption",
    "caption_is_exact",
    "describe",
    "draw",
    "edit_is_exact",
    "is_well_made",
    "matches",
    "parse",
    "quadrant",
    "read_caption",
    "read_instruction",
    "relation",
    "sample_instruction",
    "sample_scene",
    "split_of",
    "split_of_text",
    "tell",
]
