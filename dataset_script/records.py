"""What a build hands from step to step: a row of the dataset, a rejected file, and the summary for screen and card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

NEAR = "near-duplicate of a {} image"  # of a split that comes from a list, a folder or a table
OUTSIDE = "outside the class folders"
READ_THROUGH_LINK = "read through a symlink to it"
# beside the class folders these describe the dataset: listed, but no reason for --strict to fail
DOCUMENTS = {"sha256sums", "readme", "readme.md", "readme.txt", "license", "license.txt", "citation.cff"}


@dataclass(frozen=True)
class Rejected:
    """A file that is not part of the dataset, and why."""

    path: str
    reason: str
    detail: str = ""

    @property
    def is_expected(self) -> bool:
        """Whether --strict passes over it: a document beside the class folders, a file that was read
        through a link, a near-duplicate of a held-out image."""
        is_document = self.path.rsplit("/", 1)[-1].lower() in DOCUMENTS
        return self.reason in (READ_THROUGH_LINK, NEAR.format("test"), NEAR.format("validation")) or (
            self.reason == OUTSIDE and is_document
        )


@dataclass(slots=True)
class Row:
    """One image of the dataset."""

    path: str  # in the source
    sha256: bytes  # of the file, 32 bytes
    length: int  # bytes of the file
    size: tuple[int, int] = (0, 0)  # width, height
    format: str = ""
    synthetic: bool = False  # carries the comment of synthetic_cells
    label: int = 0
    node: int = 0  # which picture it shows: one number for all copies of its pixels
    file_name: str = ""
    group: str = ""
    split: str = ""
    listed: bool = False  # on the published test list
    source: str = ""
    given_split: str = ""  # by a folder or a table of the user's
    given_group: str = ""


@dataclass
class Summary:
    """What a build did."""

    out: Path
    classes: list[str]
    seen: int
    rows: list[Row]
    rejected: list[Rejected]
    left_out: int  # files of classes that --classes does not name
    spare: int  # files beyond --per_class
    pictures: int  # different ones
    compared: int  # pairs of pictures
    confirmed: int  # of them, near-duplicates
    seed: int
    kinds: dict[str, str]  # source ("" for a lone one without a name) -> matek, acevedo, synthetic or own
    notes: list[str]
    listed: int | None = None  # names on the published test list, None without one
    here: int = 0  # of them that are the name of a kept image

    @cached_property
    def reasons(self) -> Counter:
        """How many files were rejected for each reason."""
        return Counter(item.reason for item in self.rejected)

    @cached_property
    def counts(self) -> Counter:
        """How many images each (split, label, source) has."""
        return Counter((row.split, row.label, row.source) for row in self.rows)

    def count(self, split: str | None = None, label: int | None = None, source: str | None = None) -> int:
        """How many images a split, a label, a source or all that are given have."""
        wanted = (split, label, source)
        return sum(
            n
            for key, n in self.counts.items()
            if all(a in (None, b) for a, b in zip(wanted, key, strict=True))
        )

    @cached_property
    def shared_groups(self) -> list[int]:
        """The sizes of the groups that have several images."""
        return [size for size in Counter(row.group for row in self.rows).values() if size > 1]

    @property
    def near_held_out(self) -> int:
        """How many images were left out since they are near-duplicates of a test or validation image that was named."""
        return sum(self.reasons[NEAR.format(split)] for split in ("test", "validation"))
