"""Which split each image goes to: groups in, `train` / `validation` / `test` out. Pure functions, no files.

A group (images that show overlapping or near-identical content) is placed whole. Inside a class, groups are
ranked by the SHA-256 of `seed:group`, so the place of a group depends on its content and the seed alone: not on
file names, on the order of reading, or on what else is in the folder. The first groups of the ranking fill
`test` (unless a published list names the test images), the next ones `validation`, and the rest is `train`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

SPLITS = ("train", "validation", "test")
FRACTION = 0.15  # of a class's images, for `validation`, and for `test` where no list names it


def rank(group: str, seed: int) -> str:
    """Return the key that orders a group within its class: the hexadecimal SHA-256 of `seed:group`."""
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def assign_splits(
    groups: Sequence[str], labels: Sequence[int], seed: int, test_groups: set[str] | None = None
) -> Mapping[str, str]:
    """Return {group: split} for images given by their group ids and labels.

    Args:
        groups: the group id of each image; a lone image's group is its own SHA-256.
        labels: the class index of each image. A group of several classes counts for its most frequent one.
        seed: reorders the ranking.
        test_groups: the groups with an image on a published test list: these, and no others, are `test`.
    """
    sizes = Counter(groups)
    votes: dict[str, Counter] = defaultdict(Counter)  # of the groups that have several images: they are few
    by_class: dict[int, list[str]] = defaultdict(list)
    for group, label in zip(groups, labels, strict=True):
        if sizes[group] == 1:
            by_class[label].append(group)
        else:
            votes[group][label] += 1
    for group, vote in votes.items():
        by_class[min(vote, key=lambda label: (-vote[label], label))].append(group)

    split_of = {}
    for members in by_class.values():
        listed = [g for g in members if test_groups is not None and g in test_groups]
        split_of.update(dict.fromkeys(listed, "test"))
        free = sorted(set(members) - set(listed), key=lambda group: rank(group, seed))
        quota = round(FRACTION * sum(sizes[g] for g in free))
        targets = ["validation"] if test_groups is not None else ["test", "validation"]
        for split in targets:
            filled = 0
            while free and filled < quota:
                filled += sizes[free[0]]
                split_of[free.pop(0)] = split
        split_of.update(dict.fromkeys(free, "train"))
    return split_of
