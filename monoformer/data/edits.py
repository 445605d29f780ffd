"""Rows held out for testing, and pairs of rows that make edits.

Knows nothing of pictures or files, only of two columns. Invariant: a held-out row, and every row of a held-out
(group, value) combination, is on neither side of a training pair. What is held out does not depend on the run's seed,
so that a model is never tested on rows that a run with another seed learned.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from monoformer.data.source import order

HOLDOUT_SEED = 0
"""Of the orders that hold-out rows and combinations are the last of; the same for every run."""
MOST_PAIRS = 2_000_000
"""Above it the group column is surely the wrong one (a class label, say), and the list would fill the memory."""


def held_out(
    length: int, *, rows: int, combinations: int, groups: Sequence[str] = (), values: Sequence[str] = ()
) -> frozenset[int]:
    """The test rows: the last `rows` of a seeded order, and all rows of so many (group, value) combinations."""
    if not 0 <= rows < length:
        raise ValueError(f"data.holdout must be from 0 to {length - 1} (the data has {length} rows), but is {rows}")
    held = {int(row) for row in order(HOLDOUT_SEED, 0, length)[length - rows :]}
    if combinations < 0:
        raise ValueError(f"data.holdout_pairs must be 0 or more, but is {combinations}")
    if combinations == 0:
        return frozenset(held)
    if not groups or not values:
        raise ValueError(
            "data.holdout_pairs is above 0, but not both data.edit_group and data.edit_column are named; name them"
        )
    left = [row for row in range(length) if row not in held and groups[row] and values[row]]
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in left:
        members[groups[row], values[row]].append(row)
    kept = Counter(groups[row] for row in left)
    keys = sorted(members)
    taken = 0
    for place in order(HOLDOUT_SEED, 1, max(len(keys), 1))[: len(keys)]:
        group, value = keys[int(place)]
        if taken < combinations and kept[group] > len(members[group, value]):
            kept[group] -= len(members[group, value])
            held.update(members[group, value])
            taken += 1
    if taken < combinations:
        raise ValueError(
            f"data.holdout_pairs is {combinations}, but only {taken} leave other rows in their group; ask for less"
        )
    return frozenset(held)


def edit_pairs(
    groups: Sequence[str], values: Sequence[str], *, sources: Collection[int], targets: Collection[int]
) -> list[tuple[int, int]]:
    """All (source row, target row) of one group with different values; rows without a group or value are left out."""
    members: dict[str, list[int]] = defaultdict(list)
    for row in sorted(sources):
        if groups[row] and values[row]:
            members[groups[row]].append(row)
    wanted = [row for row in sorted(targets) if groups[row] and values[row]]
    count = sum(len(members[groups[row]]) for row in wanted)
    if count > MOST_PAIRS:
        raise ValueError(
            f"data.edit_group makes {count} edit pairs, more than {MOST_PAIRS}; choose a column that fewer rows share"
        )
    pairs = ((source, target) for target in wanted for source in members[groups[target]])
    return [(source, target) for source, target in pairs if values[source] != values[target]]
