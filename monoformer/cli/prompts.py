"""Files of prompts: one a line, or JSON lines.

Knows nothing of models. Invariant: a line is what ends with a newline, so that the n-th prompt is the n-th line's.
"""

import json
from pathlib import Path


def read_lines(path: Path) -> tuple[str, ...]:
    """The prompts of a file: its lines, or of JSON lines their `prompt`. Raises ValueError for none."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as prompts, one a line: {error!r}") from None
    lines = enumerate((line.strip() for line in text.split("\n")), start=1)  # splitlines would cut at U+2028 too
    reads = path.suffix == ".jsonl"
    prompts = tuple(_prompt(line, where=f"{path}:{number}") if reads else line for number, line in lines if line)
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line")
    return prompts


def _prompt(line: str, *, where: str) -> str:
    """The `prompt` of a JSON line. Raises ValueError where it is no text."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} needs a 'prompt' that is a text and not empty, but is {line:.100}")
    return prompt
