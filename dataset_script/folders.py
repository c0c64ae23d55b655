"""Interprets folder names: paths of images in; the class of each, and its split and group if a folder names them, out.

A folder is a class, a split (`train`, `Test`, `val_data`), a wrapper (the only folder above the others), a group (`--group_by`),
or inside a class. Folders that look like folds, patients or parts are never guessed to be classes: the user is asked.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache

from dataset_script.labels import CLASSES
from dataset_script.source import DatasetError
from hub_model.inference.text import printable

SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "eval": "validation", "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip
NOT_CLASSES = re.compile(
    r"(k?fold|cv|patient|pat|case|subject|subj|donor|slide|specimen|batch|part|dataset)s?[\s_.-]*\d+[a-z]?"
    r"|(images?|imgs?|jpegimages|masks?|annotations?|thumb(nail)?s?|originals?|raw|data)[\s_.-]*\d*",
    re.IGNORECASE,
)
ZIP_SUFFIX = re.compile(r"\.zip$", re.IGNORECASE)


@lru_cache(maxsize=100_000)
def class_name(folder: str) -> str:
    """Return the class name of a folder, or of a zip in place of one: NFC-normalized, without surrounding whitespace."""
    return unicodedata.normalize("NFC", printable(ZIP_SUFFIX.sub("", folder))).strip()


@lru_cache(maxsize=100_000)
def split_named(folder: str) -> str:
    """Return the split that a folder name such as `Train`, `val_data`, `TestSet` or `seg_test` stands for, "" if none."""
    words = [re.sub("(set|data|images)$", "", word) for word in re.split(r"[\W_\d]+", folder.lower())]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def first_few(names: Iterable[str], n: int = 4, separator: str = ", ") -> str:
    """Return the first `n` names in sorted order as a list, with an ellipsis if there are more."""
    names = sorted(names)
    return separator.join(names[:n] + ["…"] * (len(names) > n))


class Folders:
    """The roles of the folders that contain images.

    Attributes:
        names: the classes, including those not in `selected`; without `selected`, the topmost folders that are not a
            wrapper, split or group.
        split_of, group_of: split and group by path, for the images whose folders name one.
        folders_of: the folder names of each image by path, without wrappers, splits and groups.
    """

    def __init__(self, images: Sequence[str], selected: Collection[str] = (), group_by: str | None = None):
        self.folders_of = {path: [class_name(part) for part in path.split("/")[:-1]] for path in images}
        self.selected, self.group_by = frozenset(selected), group_by
        self.split_of: dict[str, str] = {}
        self.group_of: dict[str, str] = {}
        self.split_folders: list[str] = []
        self._read_splits()
        self.names = self._read_names()
        if group_by:
            self._read_groups()
            self.names = self._read_names()

    def label(self, path: str) -> str:
        """Return the class of an image, "" if none."""
        return next((name for name in self.folders_of[path] if name in self.names), "")

    def _at(self, level: int) -> set[str]:
        return {folders[level] for folders in self.folders_of.values() if len(folders) > level}

    def _read_splits(self) -> None:
        """Remove wrappers (archives often add one) and splits, above or directly below the classes."""
        self._remove_wrappers()
        for level in () if self.split_folders else (0, 1):
            splits = {name: split_named(name) for name in self._at(level)}
            if len(set(splits.values())) > 1 and all(splits.values()) and not self.selected & set(splits):
                self.split_folders = sorted(splits)
                for path, folders in self.folders_of.items():
                    if len(folders) > level:
                        self.split_of[path] = splits[folders.pop(level)]
                        if folders[level:] and split_named(folders[level]) == self.split_of[path]:
                            folders.pop(level)  # seg_train/seg_train/CLASS
                self._remove_wrappers()
                break

    def _remove_wrappers(self) -> None:
        while len(self._at(0)) == 1 and self._at(1) and not self._at(0) & self.selected.union(CLASSES):
            for folders in self.folders_of.values():
                del folders[:1]

    def _read_names(self) -> set[str]:
        if not self.selected:
            return self._at(0)
        everywhere = self.folders_of.values()
        levels = {i for folders in everywhere for i, name in enumerate(folders) if name in self.selected}
        others = [folders for folders in everywhere if self.selected.isdisjoint(folders)]
        unselected = {folders[i] for folders in others for i in levels if len(folders) > i}
        return unselected | self.selected.intersection(itertools.chain(*everywhere))

    def _read_groups(self) -> None:
        prefix, classes = self.group_by.lower(), self.names if self.selected else set()
        self._take_groups(lambda name: name.lower().startswith(prefix) and name not in classes)
        if self.group_of:
            self._read_splits()
        else:  # the groups contain the classes, or the classes contain the groups
            above = not self.selected and self._ambiguity()
            classes = self._at(1) if above else self.names
            self._take_groups(lambda name: name not in classes, remove=bool(above))
        if not self.group_of:
            found = first_few(self.names, 8) or "none"
            raise DatasetError(f"--group_by {self.group_by}: no folder name begins with it (found: {found})")

    def _take_groups(self, is_group: Callable[[str], bool], remove: bool = True) -> None:
        for path, folders in self.folders_of.items():
            if group := next(filter(is_group, folders), None):
                self.group_of[path] = group
                self.folders_of[path] = [name for name in folders if name != group or not remove]

    def _ambiguity(self) -> str:
        """Return why the topmost folders may not be classes, "" if they can only be classes."""
        tops, below = self._at(0), defaultdict(set)
        for folders in filter(None, self.folders_of.values()):
            below[folders[0]].add(folders[1] if len(folders) > 1 else "")
        inner = Counter(name for names in below.values() for name in names - {""})
        wordlike = {name for name in inner if not re.search(r"\d", name) and not NOT_CLASSES.fullmatch(name)}
        these, those = f"the folders {first_few(tops)}", first_few(inner)
        if 2 * len(tops & set(CLASSES)) > len(tops):
            return ""
        if len(set(map(split_named, tops)) - {""}) > 1:
            return f"some of {these} are splits and some are not"
        if all(map(NOT_CLASSES.fullmatch, tops)):
            return f"{these} look like folds, patients or parts, not like classes"
        if set(inner) & set(CLASSES) and not tops & set(CLASSES):
            return f"{these} hold folders that look like the classes ({those})"
        if len(inner) > 1 and any(inner[name] > 1 for name in wordlike):
            return f"{these} hold folders of the same names ({those})"
        if all("" not in names and len(names & wordlike) > 1 for names in below.values()):
            return f"{these} hold several folders each ({those})"
        return ""

    def check(self) -> None:
        """Check that the folders can only be classes.

        Raises:
            DatasetError: they are ambiguous, are splits without classes, or none of them is selected.
        """
        if self.selected and not self.names:
            found = {*itertools.chain(*self.folders_of.values()), *self.group_of.values()}
            selected, found = ", ".join(sorted(self.selected)), first_few(found, 20) or "none"
            raise DatasetError(f"no class folder {selected}; found: {found}")
        if self.split_folders and not self.names:
            raise DatasetError(
                f"the folders {', '.join(self.split_folders)} are splits without class folders: pass the labels with --labels "
                "FILE"
            )
        if self.selected or len(self.names) < 2 or not (ambiguity := self._ambiguity()):
            return
        answers = [f"--classes {first_few(self.names, separator=',')} if they are the classes after all"]
        if inner := self._at(1):
            answers.append(f"--classes {first_few(inner, separator=',')} if those are")
        if re.search(r"\d", "".join(self.names)):
            word = re.match(r"[^\W\d_]*", min(self.names))[0].lower()
            answers.append(f"--group_by {word or 'patient'} if the images of each must stay in one split")
        raise DatasetError(f"{ambiguity}: pass {', '.join(answers)}, or --labels FILE")
