"""The model card that goes with a trained model: what it is, how it was made, how to use it."""

import json
import re

from huggingface_hub import ModelCard

from monoformer.config.model import ModelConfig
from monoformer.config.run import RunConfig, from_json, to_json

TRAINING = "## Training configuration"
SCORES = "## Scores"


def write_card(config: RunConfig, *, parameters: int, scores: dict[str, float] | None = None) -> str:
    """Markdown with the ecosystem's metadata block. `scores` are shares by name."""
    rows = "".join(f"| {name} | {value:.3f} |\n" for name, value in (scores or {}).items())
    table = f"\n{SCORES}\n\n| score | value |\n|---|---|\n{rows}" if rows else ""
    sizes = ", ".join(f"{height}x{width}" for height, width in config.model.image_sizes)
    return f"""---
library_name: monoformer
tags: [text-to-image, image-to-text, image-to-image, text-generation]
---
# {config.name}

One transformer that writes and draws: {parameters / 1e6:.1f}M parameters, pictures of {sizes} pixels, trained with
MonoFormer on `{type(config.data).__name__}` for {config.train.steps} steps of {config.train.rows} rows of
{config.sequence.row} tokens.

```python
from monoformer import Pipeline

pipeline = Pipeline.from_pretrained("FOLDER OR HUB NAME")
picture = pipeline.generate_images("your prompt")[0]
print(pipeline.caption(picture)[0])
```
{table}
## Limits

The model knows only the kind of pictures and words that it was trained on. Say here what data it saw, and under which
licences.

{TRAINING}

```json
{json.dumps(to_json(config), indent=1)}
```
"""


def read_card(text: str) -> RunConfig | None:
    """The configuration that a card says its model was trained with; None where it says nothing.

    Raises ValueError for one that this version cannot read.
    """
    found = re.search(rf"^{TRAINING}\n+```json\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return from_json(RunConfig, json.loads(found[1]), where="the model card") if found else None


def read_examples(text: str) -> list[str]:
    """Prompts of pictures that the card's metadata name (`widget`, the hub's field for them)."""
    found = ModelCard(text, ignore_metadata_errors=True).data.get("widget") or []
    return [entry["text"] for entry in found if isinstance(entry, dict) and isinstance(entry.get("text"), str)]


def with_scores(text: str, table: str) -> str:
    """The card with this Markdown as its scores, in the place of those it had, else before its next section."""
    section = f"{SCORES}\n\n{table.strip()}\n\n"
    old = re.search(rf"^{SCORES}\n.*?(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    if old:
        return text[: old.start()] + section + text[old.end() :]
    following = re.search(r"^## ", text, flags=re.MULTILINE)
    at = following.start() if following else len(text)
    return text[:at] + section + text[at:]


def write_converted_card(name: str, config: ModelConfig, *, numbers: bool) -> str:
    """Markdown for a checkpoint of the official code; `numbers`: it came without a tokenizer."""
    prompts = "There was no tokenizer: prompts are token numbers, such as `5 17 230`.\n" if numbers else ""
    return f"""---
library_name: monoformer
tags: [text-to-image, text-generation]
---
# {name}

Converted from a checkpoint of the official MonoFormer code: width {config.width}, {config.layers} layers, patches of
{config.patch} on latents of {config.channels} channels.
{prompts}
It was trained on prompts such as "Please generate an image of a red panda." Guidance strengthens all channels; the
official code strengthens three (`guided_channels=3`).
"""
