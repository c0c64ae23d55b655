"""Assigns images to splits: groups in, `train` / `validation` / `test` out. Pure functions, no files.

A group (near-duplicates, or a patient's images) is never divided. Within a stratum (a class of a source), groups are ranked by
the SHA-256 of `seed:group`, so the split of a group depends only on its content and the seed: not on file names, the order
of reading, or the other files in the folder. The first groups of the ranking fill `test`, the next ones `validation`, and the
rest is `train`. Groups that come with a split, or are on a published test list, keep theirs.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

SPLITS = ("train", "validation", "test")
FRACTION = 0.15  # of a class's images: `validation`, and `test` if no list, folder or table defines it
FRACTION_BESIDE_LIST = 0.20  # `test` of a source without images on a test list that covers other sources


def rank(group: str, seed: int) -> str:
    """Return the key that orders a group within its stratum: the hexadecimal SHA-256 of `seed:group`."""
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def assign_splits(
    groups: Sequence[str],
    strata: Sequence[Hashable],
    seed: int,
    fixed: Mapping[str, str],
    fractions: Callable[[Hashable], tuple[float, float]],
) -> dict[str, str]:
    """Return {group: split} for images given by their group ids and strata.

    Args:
        groups: group id of each image; an image without near-duplicates has its own SHA-256.
        strata: stratum of each image. A group in several strata counts for its most frequent one.
        seed: changes the ranking.
        fixed: splits of the groups that already have one.
        fractions: returns the fractions of a stratum's other images that go to `test` and to `validation`.
    """
    sizes = Counter(groups)
    votes: dict[str, Counter] = defaultdict(Counter)  # only of groups with several images: there are few
    by_stratum: dict[Hashable, list[str]] = defaultdict(list)
    for group, stratum in zip(groups, strata, strict=True):
        if sizes[group] == 1:
            by_stratum[stratum].append(group)
        else:
            votes[group][stratum] += 1
    for group, vote in votes.items():
        by_stratum[min(vote, key=lambda stratum: (-vote[stratum], stratum))].append(group)

    split_of = dict(fixed)
    for stratum, members in by_stratum.items():
        free = sorted({group for group in members if group not in fixed}, key=lambda group: rank(group, seed))
        images = sum(sizes[group] for group in free)
        for split, fraction in zip(("test", "validation"), fractions(stratum), strict=True):
            quota, filled = round(fraction * images), 0
            while free and filled < quota:
                filled += sizes[free[0]]
                split_of[free.pop(0)] = split
        split_of.update(dict.fromkeys(free, "train"))
    return split_of
