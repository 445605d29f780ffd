"""What a run says of data that it could not use: documents left out, and steps whose gradient was not finite.

Knows nothing of models. Invariant: everything said is also in a file of the run's folder.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from monoformer.data.skipped import BadDocument, Tally
from monoformer.train.parallel import Ranks


def write_down_bad(folder: Path, step: int, losses: dict[str, float], place: dict[str, Any], console: Console) -> None:
    """Say where the documents of a step are that has no finite gradient; `place` is the loader's, before the step."""
    path = folder / f"step-{step:08d}.json"
    folder.mkdir(exist_ok=True)
    told = {name: str(value) for name, value in losses.items()}
    path.write_text(json.dumps({"step": step, "losses": told, "loader": place}, indent=2), encoding="utf-8")
    console.print(f"step {step} has no finite gradient and is left out; its documents: {path}")


def share_found(found: dict[int, BadDocument], ranks: Ranks) -> dict[int, BadDocument]:
    """What all processes found wrong in their rows, by number of the document."""
    all_found = ranks.gather_all([(number, str(bad), bad.cause) for number, bad in found.items()])
    return {number: BadDocument(say, cause=cause) for own in all_found for number, say, cause in own}


def tell_skipped(tally: Tally, folder: Path, told: set[tuple[str, str]], console: Console) -> None:
    """Keep `skipped.json` up to date, and say once of each source and cause (kept in `told`) what is skipped."""
    if tally.total:
        text = json.dumps(tally.state_dict(), indent=1, ensure_ascii=False)
        (folder / "skipped.json").write_text(text + "\n", encoding="utf-8")
    for source, cause, count, examples in tally.entries():
        if (source, cause) not in told:
            told.add((source, cause))
            say = f"skipped {count} of {tally.read(source)} documents of {source}: {cause} ({examples[0]})"
            console.print(f"{say}; more in {folder / 'skipped.json'}", markup=False)
