"""How folder names are read: paths of pictures in; for each its class, and its split and group where folders name them, out.

A folder is a class, a split (`train`, `Test`, `val_data`), a wrapper (it stands alone above others), a group (`--group_by`), or
below the class. What looks like a fold, a patient or a part is none of them until the person who knows says so.
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
from hub_model.inference.text import shown

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
    """How the folders of pictures are read.

    Attributes:
        names: of the classes, also of those that `wanted` does not name; without `wanted`, of the uppermost folders that are
            no wrapper, split or group.
        split_of, group_of: for the pictures whose folders name one.
    """

    def __init__(self, pictures: Sequence[str], wanted: Collection[str] = (), group_by: str | None = None):
        self.rest = {path: [class_name(part) for part in path.split("/")[:-1]] for path in pictures}
        self.wanted, self.group_by = frozenset(wanted), group_by
        self.split_of: dict[str, str] = {}
        self.group_of: dict[str, str] = {}
        self.split_folders: tuple[str, ...] = ()
        self._read_splits()
        self.names = self._read_names()
        if group_by:
            self._read_groups()
            self.names = self._read_names()

    def label(self, path: str) -> str:
        """The class of a picture, "" for none."""
        return next((name for name in self.rest[path] if name in self.names), "")

    def _at(self, level: int) -> set[str]:
        return {folders[level] for folders in self.rest.values() if len(folders) > level}

    def _read_splits(self) -> None:
        """Take out wrappers (an archive often wraps its folders once more) and splits, above or right below the classes."""
        self._skip_wrappers()
        for level in () if self.split_folders else (0, 1):
            splits = {name: split_named(name) for name in self._at(level)}
            if len(set(splits.values())) > 1 and all(splits.values()) and not self.wanted & set(splits):
                self.split_folders = tuple(sorted(splits))
                for path, folders in self.rest.items():
                    if len(folders) > level:
                        self.split_of[path] = splits[folders.pop(level)]
                        if folders[level:] and split_named(folders[level]) == self.split_of[path]:
                            folders.pop(level)  # seg_train/seg_train/CLASS
                self._skip_wrappers()
                break

    def _skip_wrappers(self) -> None:
        while len(self._at(0)) == 1 and self._at(1) and not self._at(0) & self.wanted.union(CLASSES):
            for folders in self.rest.values():
                del folders[:1]

    def _read_names(self) -> set[str]:
        if not self.wanted:
            return self._at(0)
        levels = {
            i for folders in self.rest.values() for i, name in enumerate(folders) if name in self.wanted
        }
        others = [folders for folders in self.rest.values() if self.wanted.isdisjoint(folders)]
        found = {folders[i] for folders in others for i in levels if len(folders) > i}
        return found | self.wanted.intersection(itertools.chain(*self.rest.values()))

    def _read_groups(self) -> None:
        begins, classes = self.group_by.lower(), self.names if self.wanted else set()
        self._take_groups(lambda name: name.lower().startswith(begins) and name not in classes)
        if self.group_of:
            self._read_splits()
        else:  # patients hold the classes, or the classes hold patients
            above = not self.wanted and self._doubt()
            classes = self._at(1) if above else self.names
            self._take_groups(lambda name: name not in classes, out=bool(above))
        if not self.group_of:
            there = some(self.names, 8) or "none"
            raise DatasetError(f"--group_by {self.group_by}: no folder's name begins so (there are: {there})")

    def _take_groups(self, is_group: Callable[[str], bool], out: bool = True) -> None:
        for path, folders in self.rest.items():
            if named := next(filter(is_group, folders), None):
                self.group_of[path] = named
                self.rest[path] = [name for name in folders if name != named or not out]

    def _doubt(self) -> str:
        """Why the folders at the level of the classes may be none; "" where they are."""
        tops, below = self._at(0), defaultdict(set)
        for folders in filter(None, self.rest.values()):
            below[folders[0]].add(folders[1] if len(folders) > 1 else "")
        inner = Counter(name for names in below.values() for name in names - {""})
        telling = {name for name in inner if not re.search(r"\d", name) and not NOT_CLASSES.fullmatch(name)}
        these, those = f"the folders {some(tops)}", some(inner)
        if 2 * len(tops & set(CLASSES)) > len(tops):
            return ""
        if len(set(map(split_named, tops)) - {""}) > 1:
            return f"some of {these} are splits and some are not"
        if all(map(NOT_CLASSES.fullmatch, tops)):
            return f"{these} look like folds, patients or parts, not like classes"
        if set(inner) & set(CLASSES) and not tops & set(CLASSES):
            return f"{these} hold folders that look like the classes ({those})"
        if len(inner) > 1 and any(inner[name] > 1 for name in telling):
            return f"{these} hold folders of the same names ({those})"
        if all("" not in names and len(names & telling) > 1 for names in below.values()):
            return f"{these} hold several folders each ({those})"
        return ""

    def check(self) -> None:
        """Check that the folders can only be classes.

        Raises:
            DatasetError: they are doubtful, splits that hold no classes, or none of the wanted ones.
        """
        if self.wanted and not self.names:
            there = some({*itertools.chain(*self.rest.values()), *self.group_of.values()}, 20) or "none"
            raise DatasetError(f"no class folder {', '.join(sorted(self.wanted))}; there are: {there}")
        if self.split_folders and not self.names:
            raise DatasetError(
                f"the folders {', '.join(self.split_folders)} are splits and hold no folder a class: pass the labels with "
                "--labels FILE"
            )
        if self.wanted or len(self.names) < 2 or not (doubt := self._doubt()):
            return
        ways = [f"--classes {','.join(sorted(self.names)[:4])} if they are the classes all the same"]
        if inside := sorted(self._at(1)):
            ways.append(f"--classes {','.join(inside[:4])} if those are")
        if re.search(r"\d", "".join(self.names)):
            word = re.match(r"[^\W\d_]*", min(self.names))[0].lower()
            ways.append(f"--group_by {word or 'patient'} if each one's images have to stay in one split")
        raise DatasetError(f"{doubt}: pass {', '.join(ways)}, or --labels FILE")
