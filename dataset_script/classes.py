"""Which file belongs to which class: a source's listing in, files by class and rejected files out.

Expected is one folder a class, files at any depth below it, the class folders at the top or below folders that hold nothing
else (an archive often wraps them once more).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dataset_script.labels import CLASSES
from dataset_script.records import OUTSIDE, Rejected
from dataset_script.source import DatasetError, base_name, shown
from hub_model.inference.images import SUFFIXES

SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test"}


@dataclass
class ClassFolders:
    """The class folders of a source and what is in them."""

    files: dict[str, list[str]] = field(default_factory=dict)  # class -> sorted paths
    rejected: list[Rejected] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)  # also those that --classes does not name
    left_out: int = 0  # files of classes that --classes does not name
    seen: int = 0  # all entries


def suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[-1].lower() if "." in name else ""


def _class_level(paths: Sequence[str], wanted: Sequence[str]) -> int:
    """Return how many leading folders all class folders are below: past folders that stand alone."""
    level = 0
    while True:
        deeper = [path for path in paths if path.count("/") > level]
        folders = {path.split("/")[level] for path in deeper}
        if len(folders) != 1 or folders & (set(CLASSES) | set(wanted)):
            return level
        if not any(path.count("/") > level + 1 for path in deeper):  # its files are images: a class after all
            return level
        level += 1


def arrange(listing: Iterable[tuple[str, str]], wanted: Sequence[str] = ()) -> ClassFolders:
    """Sort a source's listing into classes.

    A folder is an unknown class where it holds no file with the ending of an image, or where most folders carry codes of
    the published 21 classes and it does not. `wanted` picks classes; the others are left out, which is no rejection.

    Raises:
        DatasetError: no class folder, only one, not those that are wanted, splits in their place, or two of one name.
    """
    found, plain = ClassFolders(), []
    for path, reason in listing:
        found.seen += 1
        if reason:
            found.rejected.append(Rejected(path, *reason.split(": ", 1)))
        else:
            plain.append(path)
    level = _class_level(plain, wanted)
    folders: dict[str, list[str]] = defaultdict(list)
    for path in plain:
        if path.count("/") > level:
            folders[path.split("/")[level]].append(path)
        else:
            found.rejected.append(Rejected(path, OUTSIDE))
    with_images = {name for name, paths in folders.items() if any(suffix(p) in SUFFIXES for p in paths)}
    published = with_images & set(CLASSES)
    known = published if 2 * len(published) > len(with_images) else with_images
    known = known | (set(wanted) & set(folders))
    missing = [name for name in wanted if name not in folders]
    if missing:
        raise DatasetError(
            f"no class folder {', '.join(missing)}; there are: {shown(', '.join(sorted(known))) or 'none'}"
        )
    found.classes = known
    for name in sorted(folders):
        if name not in known:
            found.rejected += [Rejected(path, "unknown class folder") for path in folders[name]]
        elif wanted and name not in wanted:
            found.left_out += len(folders[name])
        else:
            found.files[name] = folders[name]
    if len(found.files) < 2:
        names = ", ".join(map(shown, found.files)) or "none"
        raise DatasetError(f"a dataset needs two class folders with images or more; found: {names}")
    if SPLIT_FOLDERS.issuperset(map(str.lower, found.files)):
        raise DatasetError(
            f"the folders {', '.join(found.files)} are splits, and one folder a class is expected: join them class by class, "
            "and pass --test_names to keep a test set"
        )
    name, folders_of_it = Counter(map(shown, found.files)).most_common(1)[0]
    if folders_of_it > 1:
        raise DatasetError(f"{folders_of_it} class folders would all be called {name}: rename them")
    return found


def find_listed(folders: ClassFolders, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths that each name on a test list stands for: several where it does not tell them apart.

    They end in its file name and, where it has the folder of a class, are of that class; of these, those that share most
    trailing folders with it. So `x.jpg` stands for every x.jpg, `/elsewhere/BLA/0001/x.jpg` for `BLA/x.jpg`.
    """
    by_name: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, paths in folders.files.items():
        for path in paths:
            by_name[label, base_name(path)].append(path)
    found = {}
    for name in names:
        *parents, last = name.split("/")
        labels = folders.classes.intersection(parents) or folders.files
        paths = [path for label in labels for path in by_name.get((label, last), ())]
        while parents:
            last = f"{parents.pop()}/{last}"
            paths = [path for path in paths if f"/{path}".endswith(f"/{last}")] or paths
        found[name] = paths
    return found
