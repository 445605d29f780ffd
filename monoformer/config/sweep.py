"""A study: runs that differ in what it asks about, their seeds, and the scores that answer."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from monoformer.config.evaluate import ScoreConfig
from monoformer.config.run import from_json
from monoformer.config.spelling import hint


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One variant; a row of the table."""

    name: str
    """Name of the variant. In the overrides of later variants @NAME stands for its model folder (of the same seed, or
    of its only one): `--from @NAME` starts from it, `--tokenizer.path @NAME` takes its tokenizer."""
    preset: str = ""
    """What it is made from; empty: the study's preset."""
    overrides: str = ""
    """Options as on the command line, after the study's."""
    seeds: tuple[int, ...] = ()
    """Its seeds; empty: the study's."""
    scores: tuple[str, ...] = ()
    """Names of the scores that are computed at its end; empty: all of the study's."""
    shown: bool = True
    """Whether it is in the table and the picture; what others only start from need not be."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(
                f"a run is named {self.name!r}, but its name is part of a folder's and an option: use letters, digits, "
                f"'.', '_' and '-'"
            )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The runs of one study."""

    title: str
    """What the table shows, in a few words."""
    preset: str = ""
    """What runs are made from that name no preset of their own."""
    overrides: str = ""
    """Options of every run, as on the command line."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs that name none of their own."""
    ordered: bool = False
    """Whether the variants are steps of one quantity: the picture then joins their means by a line."""
    runs: tuple[SweepRun, ...] = ()
    """The variants, in the order of the table."""
    scores: tuple[ScoreConfig, ...] = ()
    """What finished runs are scored by."""
    slopes: tuple[str, ...] = ()
    """Losses and scores of which the table gives the slope against compute, both in logarithms, over the variants."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a sweep needs runs; give at least one [[runs]] with a name")
        for what, names in (("runs", [r.name for r in self.runs]), ("scores", [s.name for s in self.scores])):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what} are named {name!r}; give each a name of its own")
        for run in self.runs:
            if not (run.preset or self.preset):
                raise ValueError(f"run {run.name!r} has no preset, and the sweep names none; name one")
            if not self.seeds_of(run) or len(set(self.seeds_of(run))) < len(self.seeds_of(run)):
                raise ValueError(f"run {run.name!r} needs seeds that differ, but has {list(self.seeds_of(run))}")
            for name in run.scores:
                known = [score.name for score in self.scores]
                if name not in known:
                    say = hint(name, known, otherwise=f"scores are {', '.join(known) or 'not given'}")
                    raise ValueError(f"run {run.name!r} asks for the scores {name!r}, which are not defined; {say}")

    @property
    def shown(self) -> tuple[SweepRun, ...]:
        """The variants that are compared."""
        return tuple(run for run in self.runs if run.shown)

    def seeds_of(self, run: SweepRun) -> tuple[int, ...]:
        """The run's seeds, its own or the study's."""
        return run.seeds or self.seeds

    def scores_of(self, run: SweepRun) -> tuple[ScoreConfig, ...]:
        """The run's scores, its own or all."""
        return tuple(score for score in self.scores if not run.scores or score.name in run.scores)


def load_sweep(path: Path) -> SweepConfig:
    """The study in a TOML file. Raises ValueError when it is missing, broken or contradicts itself."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no sweep file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    return from_json(SweepConfig, data, where=str(path))
