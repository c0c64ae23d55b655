"""The records of a build: a row of the dataset, a rejected file, and the summary that is printed and written into the card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hub_model.inference.text import is_system_file

NEAR = "near-duplicate of a {} image"  # of a split that a test list, a folder or a table names
NEAR_HELD_OUT = [NEAR.format(split) for split in ("test", "validation")]
OUTSIDE = "outside the class folders"
READ_THROUGH_LINK = "read through a symlink to it"
# files that describe the dataset: rejected beside the class folders, but no reason for --strict to fail
DOCUMENTS = {"sha256sums", "readme", "readme.md", "readme.txt", "license", "license.txt", "citation.cff"}


@dataclass(frozen=True)
class Rejected:
    """A file that is not part of the dataset, and why."""

    path: str
    reason: str
    detail: str = ""

    @property
    def is_expected(self) -> bool:
        """Whether --strict accepts it: a document, a system file, a file read through a link, a near-duplicate of a test one."""
        if is_system_file(self.path):
            return True
        if self.reason == OUTSIDE:
            return self.path.rsplit("/", 1)[-1].lower() in DOCUMENTS
        return self.reason in (READ_THROUGH_LINK, *NEAR_HELD_OUT)


@dataclass(slots=True)
class Row:
    """One image of the dataset."""

    path: str  # in the source
    sha256: bytes  # of the file, 32 bytes
    length: int  # of the file, in bytes
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    format: str = ""
    synthetic: bool = False  # the file has the comment of synthetic_cells
    label: int = 0
    node: int = 0  # index of its pixels: shared by all files that decode to the same pixels
    file_name: str = ""
    group: str = ""
    split: str = ""
    listed: bool = False  # on the published test list
    source: str = ""
    given_split: str = ""  # from a folder or a table
    given_group: str = ""

    @property
    def own_split(self) -> str:
        """The split that the test list, a folder or a table gives the image itself, "" if none."""
        return "test" if self.listed else self.given_split


@dataclass
class Summary:
    """The outcome of a build."""

    out: Path
    classes: list[str]
    seen: int
    rows: list[Row]
    rejected: list[Rejected]
    left_out: int  # files of classes that --classes does not name
    spare: int  # files beyond --per_class
    pictures: int  # number of images with distinct pixels
    compared: int  # pairs of them
    confirmed: int  # compared pairs that are near-duplicates
    seed: int
    kinds: dict[str, str]  # source ("" for an unnamed one) -> matek, acevedo, synthetic or own
    notes: list[str]
    listed: int | None = None  # names on the published test list, None without one
    listed_kept: int = 0  # names on it that match a kept image

    @cached_property
    def reasons(self) -> Counter:
        """Number of rejected files by reason."""
        return Counter(item.reason for item in self.rejected)

    @cached_property
    def counts(self) -> Counter:
        """Number of images by (split, label, source)."""
        return Counter((row.split, row.label, row.source) for row in self.rows)

    def count(self, split: str | None = None, label: int | None = None, source: str | None = None) -> int:
        """Return the number of images of a split, a label and a source; None stands for all of them."""
        query = (split, label, source)
        return sum(
            n
            for key, n in self.counts.items()
            if all(q in (None, k) for q, k in zip(query, key, strict=True))
        )

    @cached_property
    def shared_groups(self) -> list[int]:
        """The sizes of the groups that have several images."""
        return [size for size in Counter(row.group for row in self.rows).values() if size > 1]

    @property
    def near_held_out(self) -> int:
        """Number of images left out as near-duplicates of a held-out (test or validation) image."""
        return sum(self.reasons[reason] for reason in NEAR_HELD_OUT)
