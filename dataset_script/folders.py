"""How folder names are read: paths of pictures in; for each its class, and its split and group where folders name them, out.

A folder is a class, a split (`train`, `Test`, `val_data`), a wrapper (it stands alone above others), a group (`--group_by`), or
below the class. What looks like a fold, a patient or a part is none of them until the person who knows says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

from dataset_script.labels import CLASSES
from dataset_script.source import DatasetError, shown

SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "eval": "validation", "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip
NOT_CLASSES = re.compile(
    r"(k?fold|cv|patient|pat|case|subject|subj|donor|slide|specimen|batch|part|dataset)s?[\s_.-]*\d+[a-z]?"
    r"|(images?|imgs?|jpegimages|masks?|annotations?|thumb(nail)?s?|originals?|raw|data)[\s_.-]*\d*",
    re.IGNORECASE,
)


@lru_cache(maxsize=100_000)
def class_name(folder: str) -> str:
    """Return the class that a folder (or a zip in its place) stands for: composed Unicode without outer blanks."""
    return unicodedata.normalize("NFC", shown(re.sub(r"\.zip$", "", folder, flags=re.IGNORECASE))).strip()


@lru_cache(maxsize=100_000)
def split_named(folder: str) -> str:
    """Return the split that a folder's name stands for, "" for none: `Train`, `val_data`, `TestSet`, `seg_test`."""
    words = [re.sub("(set|data|images)$", "", word) for word in re.split(r"[\W_\d]+", folder.lower())]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def some(names: Iterable[str], most: int = 4) -> str:
    """Return a few of many names, for a sentence."""
    names = sorted(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


class Folders:
    """How the folders of pictures are read: for each picture its class, split and group; "" for none."""

    wanted: frozenset[str] = frozenset()

    def __init__(self, pictures: Sequence[str], group_by: str | None = None):
        self.rest = {path: [class_name(part) for part in path.split("/")[:-1]] for path in pictures}
        self.split_of: dict[str, str] = {}
        self.group_of: dict[str, str] = {}
        self.group_by, self.split_folders = group_by, ()
        self._skip_wrappers()
        if self._read_splits():
            self._skip_wrappers()
        else:
            self._read_splits_below()
        if group_by:
            self._read_groups()

    def tops(self) -> dict[str, list[list[str]]]:
        """For each folder at the level of the classes, the folders below it on the way to each picture."""
        tops = defaultdict(list)
        for folders in self.rest.values():
            if folders:
                tops[folders[0]].append(folders[1:])
        return tops

    def names(self) -> set[str]:
        return set(self.tops())

    def label(self, path: str) -> str:
        return self.rest[path][0] if self.rest[path] else ""

    def _skip_wrappers(self) -> None:
        """Skip folders that stand alone above others: an archive often wraps its folders once more."""
        while True:
            tops = self.tops()
            if (
                len(tops) != 1
                or set(tops) & self.wanted.union(CLASSES)
                or not any(below for below in tops[next(iter(tops))])
            ):
                return
            self._drop_first()

    def _drop_first(self) -> None:
        for path, folders in self.rest.items():
            self.rest[path] = folders[1:]

    def _read_splits(self) -> bool:
        tops = self.tops()
        splits = {top: split_named(top) for top in tops}
        if len(set(splits.values())) < 2 or not all(splits.values()) or self.wanted & set(tops):
            return False
        self.split_folders = tuple(sorted(tops))
        for path, folders in self.rest.items():
            if folders:
                first = self.split_of[path] = splits[folders[0]]
                again = len(folders) > 1 and split_named(folders[1]) == first  # seg_train/seg_train/CLASS
                self.rest[path] = folders[2 if again else 1 :]
        return True

    def _read_splits_below(self) -> None:
        """Read CLASS/train, CLASS/test: every class holds splits and nothing else."""
        below = {folders[1] if len(folders) > 1 else "" for folders in self.rest.values()}
        if len(set(map(split_named, below))) > 1 and all(map(split_named, below)) and not below & self.wanted:
            self.split_folders = tuple(sorted(below))
            for path, folders in self.rest.items():
                self.split_of[path] = split_named(folders.pop(1))

    def _read_groups(self) -> None:
        begins = self.group_by.lower()
        for path, folders in self.rest.items():
            named = next((name for name in folders if name.lower().startswith(begins)), None)
            if named:
                self.group_of[path] = named
                self.rest[path] = [name for name in folders if name != named]
        if self.group_of:
            self._skip_wrappers()
            if not self.split_of and self._read_splits():
                self._skip_wrappers()
            return
        above = self._doubtful() is not None  # patients hold the classes, or the classes hold patients
        for path, folders in self.rest.items():
            if len(folders) > 1:
                self.group_of[path] = folders[0] if above else folders[1]
                self.rest[path] = folders[1:] if above else folders
        if not self.group_of:
            there = ", ".join(sorted(self.names())[:8])
            raise DatasetError(
                f"--group_by {self.group_by}: no folder's name begins so (there are: {there or 'none'})"
            )

    def _doubtful(self) -> tuple[str, list[str]] | None:
        """Why the folders at the level of the classes may be none, and what they hold; None where they are."""
        tops = self.tops()
        below = {top: {rest[0] for rest in ways if rest} for top, ways in tops.items()}
        inner = Counter(name for names in below.values() for name in names)
        listed, inside = some(tops), sorted(inner)
        if 2 * len(set(tops) & set(CLASSES)) > len(tops):
            return None
        if len({split_named(top) for top in tops} - {""}) > 1:
            return f"some of the folders {listed} are splits and some are not", inside
        if all(NOT_CLASSES.fullmatch(top) for top in tops):
            return f"the folders {listed} look like folds, patients or parts, not like classes", inside
        if set(inner) & set(CLASSES) and not set(tops) & set(CLASSES):
            return f"the folders {listed} hold folders that look like the classes ({some(inner)})", inside
        names = {name for name in inner if not re.search(r"\d", name) and not NOT_CLASSES.fullmatch(name)}
        if len(inner) > 1 and any(inner[name] > 1 for name in names):
            return f"the folders {listed} hold folders of the same names ({some(inner)})", inside
        nested = all(all(ways) for ways in tops.values())
        if nested and all(len(found & names) > 1 for found in below.values()):
            return f"the folders {listed} hold several folders each ({some(inner)})", inside
        return None

    def check(self) -> None:
        """Check that the folders can only be classes.

        Raises:
            DatasetError: they are doubtful, or splits that hold no classes.
        """
        if self.split_folders and not any(self.rest.values()):
            raise DatasetError(
                f"the folders {', '.join(self.split_folders)} are splits and hold no folder a class: pass the labels with "
                "--labels FILE"
            )
        doubt = self._doubtful() if len(self.names()) > 1 else None
        if doubt:
            why, inside = doubt
            ways = [f"--classes {','.join(sorted(self.names())[:4])} if they are the classes all the same"]
            if inside:
                ways.append(f"--classes {','.join(inside[:4])} if those are")
            if re.search(r"\d", "".join(self.names())):
                word = re.match(r"[^\W\d_]*", min(self.names()))[0].lower()
                ways.append(f"--group_by {word or 'patient'} if each one's images have to stay in one split")
            raise DatasetError(f"{why}: pass {', '.join(ways)}, or --labels FILE")


class NamedFolders(Folders):
    """The same where --classes says which folders are classes, wherever they are."""

    def __init__(self, pictures: Sequence[str], wanted: Sequence[str], group_by: str | None = None):
        self.wanted = frozenset(wanted)
        super().__init__(pictures)
        levels = {self._place(path) for path in pictures} - {None}
        self.others = {  # the names of classes that are not wanted
            folders[level]
            for folders in self.rest.values()
            for level in levels
            if self._is_other(folders, level)
        }
        self.group_by = group_by
        if group_by:
            for path, folders in self.rest.items():
                way = [name for name in folders if name not in self.wanted | self.others]
                named = [name for name in way if name.lower().startswith(group_by.lower())] or way
                if named:
                    self.group_of[path] = named[0]
            if not self.group_of:
                raise DatasetError(
                    f"--group_by {group_by}: the pictures of {', '.join(wanted)} are in no other folders"
                )

    def _place(self, path: str) -> int | None:
        return next((i for i, name in enumerate(self.rest[path]) if name in self.wanted), None)

    def _is_other(self, folders: list[str], level: int) -> bool:
        return len(folders) > level and not set(folders) & self.wanted

    def names(self) -> set[str]:
        return {self.label(path) for path in self.rest} - {""}

    def label(self, path: str) -> str:
        return next((name for name in self.rest[path] if name in self.wanted | self.others), "")

    def check(self) -> None:
        """Check that every wanted class is there.

        Raises:
            DatasetError: one is not.
        """
        if missing := sorted(self.wanted - self.names()):
            there = sorted({name for folders in self.rest.values() for name in folders})
            raise DatasetError(
                f"no class folder {', '.join(missing)}; there are: {', '.join(there[:20]) or 'none'}"
            )
