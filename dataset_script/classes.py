"""Which file belongs to which class: a source's listing in, files by class out, with their split and group where they have one.

Read are: one folder a class, files at any depth below it; the same below folders that are splits (`train`, `Test`, `val_data`)
or that stand alone; a table of file names and labels. What cannot be told apart is asked for, never guessed: folders that look
like folds, patients or wrappers become no classes.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dataset_script.folders import Folders, class_name, some, split_named
from dataset_script.labels import CLASSES
from dataset_script.records import OUTSIDE, Rejected
from dataset_script.source import OUT_OF_FOLDER, PACKED, DatasetError, Sources, base_name
from dataset_script.tables import LabelRow, read_labels
from hub_model.inference.images import SUFFIXES, looks_like_picture
from hub_model.inference.text import shown

TABLES = re.compile(r"(metadata|labels)\.(csv|tsv|parquet|jsonl)", re.IGNORECASE)
NO_LABEL = "no label in the table"
NO_PICTURES = "folder without pictures that are read"
# Cyrillic and Greek letters, after casefold, that look like Latin ones; dashes
LOOK_ALIKE = str.maketrans("авекмнорстухіјѕαβεζηικμνορτυχ‐‑‒–—−", "abekmhopctyxijsabezhikmnoptyx------")
WAYS_OUT = {
    OUT_OF_FOLDER: "pass --follow_links, or copy the files",
    OUTSIDE: "put them into one folder a class, or pass --labels FILE",
    PACKED: "unpack it",
    NO_PICTURES: "save the pictures as JPEG, PNG or TIFF",
    NO_LABEL: "give names that stand for several files their folders",
}


@dataclass
class ClassFolders:
    """The classes and what is in them."""

    files: dict[str, list[str]] = field(default_factory=dict)  # class -> sorted paths
    split_of: dict[str, str] = field(default_factory=dict)  # path -> split, for files that come with one
    group_of: dict[str, str] = field(default_factory=dict)  # path -> group, the same
    rejected: list[Rejected] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)  # also those that --classes does not name
    left_out: int = 0  # files of classes that --classes does not name
    seen: int = 0  # all entries
    notes: list[str] = field(default_factory=list)  # on what was read of splits, groups and tables

    def add(self, other: ClassFolders, name: str) -> None:
        """Add what is in one of several sources, the source's name before each path; "" for a lone one."""
        before, about = (f"{name}/", f"{name}: ") if name else ("", "")
        for label, paths in other.files.items():
            self.files.setdefault(label, []).extend(before + path for path in paths)
        self.split_of.update({before + path: split for path, split in other.split_of.items()})
        self.group_of.update({before + path: before + group for path, group in other.group_of.items()})
        self.rejected += [Rejected(before + item.path, item.reason, item.detail) for item in other.rejected]
        self.classes |= other.classes
        self.left_out, self.seen = self.left_out + other.left_out, self.seen + other.seen
        self.notes += [about + note for note in other.notes]


def suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[-1].lower() if "." in name else ""


def arrange(
    sources: Sources, wanted: Sequence[str] = (), group_by: str | None = None, labels: tuple[str, bytes] | None = None
) -> ClassFolders:  # fmt: skip
    """Sort the files of all sources into classes.

    Args:
        wanted: picks classes; the others are left out, which is no rejection.
        group_by: what the names of folders that are groups begin with (`patient`); without such folders, all that are no class.
        labels: the name and bytes of a table of labels; without one, one in a source is read where its folders are no classes.

    Raises:
        DatasetError: the classes cannot be told, are too few, not those that are wanted, or look alike.
    """
    whole = ClassFolders()
    for name, source in sources.parts.items():
        part = _arrange_one(source, wanted, group_by, labels)
        if name:
            _check_number(part, 1)
        whole.add(part, name)
    whole.files = dict(sorted(whole.files.items()))
    if missing := sorted(set(wanted) - set(whole.files)):
        there = some(whole.classes, 20) or "none"
        raise DatasetError(f"no class {', '.join(missing)}; there are: {there}{_passed_over(whole)}")
    _check_names(whole)
    _check_number(whole, 2)
    return whole


def _arrange_one(
    source, wanted: Sequence[str], group_by: str | None, labels: tuple[str, bytes] | None
) -> ClassFolders:
    found, plain = ClassFolders(), []
    for path, reason in source.listing():
        found.seen += 1
        if reason:
            found.rejected.append(Rejected(path, *reason.split(": ", 1)))
        else:
            plain.append(path)
    tables = [path for path in plain if TABLES.fullmatch(base_name(path))]
    if labels is not None:
        sorted_files = _by_table(found, plain, {"": read_labels(*labels)})
    else:
        folders = Folders([path for path in plain if _may_be_picture(source, path)], wanted, group_by)
        if tables and len(folders.names) < 2:
            rows = {path.rpartition("/")[0]: read_labels(path, source.read(path)) for path in tables}
            sorted_files = _by_table(found, [path for path in plain if path not in tables], rows)
        else:
            folders.check()
            _check_against_tables(source, tables, folders.names)
            sorted_files = _by_folders(found, plain, folders)
    for item in sorted_files:
        if isinstance(item, Rejected):
            found.rejected.append(item)
        elif wanted and item.label not in wanted:
            found.left_out += 1
        else:
            found.files.setdefault(item.label, []).append(item.file)
            found.split_of.update({item.file: item.split} if item.split else {})
            found.group_of.update({item.file: item.group} if item.group else {})
    return found


def _may_be_picture(source, path: str) -> bool:
    """Whether a file counts when folders are told apart: it has a picture's ending, or none and a picture's first bytes."""
    if "." in base_name(path):
        return suffix(path) in SUFFIXES
    try:
        return looks_like_picture("", source.read(path)[:16])
    except OSError:
        return False


def _check_number(found: ClassFolders, least: int) -> None:
    """Check that there are so many classes.

    Raises:
        DatasetError: there are fewer; it counts what was not read, by reason and ending, with the way out.
    """
    if len(found.files) < least:
        names = ", ".join(found.files) or "none"
        raise DatasetError(
            f"a dataset needs two classes with images or more; found: {names}{_passed_over(found)}"
        )


def _passed_over(found: ClassFolders) -> str:
    """What was not read, by reason and ending, with the way out: "" where there is nothing."""
    counts = Counter((item.reason, suffix(item.path)) for item in found.rejected)
    if not counts:
        return "" if found.seen else " (it is empty)"
    told = []
    for (reason, ending), number in counts.most_common(4):
        way = f": {WAYS_OUT[reason]}" if reason in WAYS_OUT else ""
        told.append(f"{number:,} {f'.{ending} ' if ending else ''}({reason}{way})")
    return f"; passed over: {', '.join(told)}"


def _check_against_tables(source, tables: Sequence[str], names: set[str]) -> None:
    """Check that a table of labels in the source, where there is one, does not tell of other classes than the folders.

    Raises:
        DatasetError: it does.
    """
    for path in tables:
        labels = set()
        with contextlib.suppress(DatasetError, OSError):  # a table of other things
            labels = {class_name(row.label) for row in read_labels(path, source.read(path))} - {""}
        if labels and not labels & names:
            told = f"{some(labels)} in {shown(path)}, {some(names)} as folders"
            raise DatasetError(
                f"there are two kinds of classes ({told}): pass --labels FILE, or --classes with the folders' names"
            )


def _by_folders(found: ClassFolders, plain: Sequence[str], folders: Folders) -> Iterator[LabelRow | Rejected]:
    """Say of every file what its folder says: one that is no picture goes with the pictures beside it, to be rejected there."""
    label_of_folder = {path.rpartition("/")[0]: folders.label(path) for path in folders.rest}
    tops_with_pictures = {folder.partition("/")[0] for folder in label_of_folder}
    published = folders.names & set(CLASSES)
    are_published = 2 * len(published) > len(folders.names) and not folders.wanted
    found.classes = published if are_published else folders.names
    bare = set()
    for path in plain:
        folder = path.rpartition("/")[0]
        while folder and folder not in label_of_folder:  # no picture is in it: the nearest above counts
            folder = folder.rpartition("/")[0]
        label = label_of_folder.get(folder, "")
        top, below, _ = path.partition("/")
        if label in found.classes:
            yield LabelRow(path, label, folders.split_of.get(path, ""), folders.group_of.get(path, ""))
        elif label:
            yield Rejected(path, "unknown class folder")
        elif below and top not in tops_with_pictures:
            bare.add(top)
            yield Rejected(path, NO_PICTURES)
        else:
            yield Rejected(path, OUTSIDE)
    if bare:
        found.notes.append(f"no pictures that are read in the folders {some(bare)}")
    if folders.split_folders:
        found.notes.append(f"splits read from the folders {', '.join(folders.split_folders)}")
    if folders.group_by:
        groups = len(set(found.group_of.values()))
        found.notes.append(f"{groups:,} groups read from folder names ({folders.group_by})")


def _by_table(
    found: ClassFolders, plain: Sequence[str], tables: dict[str, list[LabelRow]]
) -> Iterator[LabelRow | Rejected]:
    """Say of every file what a table's row says; each table's names are relative to the folder that it is in."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in plain:
        name = base_name(path)
        bare = name.rpartition(".")[0] or name
        for key in {name, bare, f"/{name.lower()}", f"/{bare.lower()}"}:  # no ending, or in another case
            by_name[key].append(path)
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    rows = [(folder, row) for folder, rows in tables.items() for row in rows]
    absent = ambiguous = 0
    for folder, row in rows:
        name = base_name(row.file)
        paths = _paths_named(
            f"{folder}/{row.file}".lstrip("/"), by_name.get(name) or by_name.get(f"/{name.lower()}", ())
        )
        absent, ambiguous = absent + (not paths), ambiguous + (len(paths) > 1)
        for path in paths:
            rows_of[path].append(row if len(paths) == 1 else LabelRow(row.file, ""))
    if not rows_of:
        example = shown(rows[0][1].file) if rows else "none"
        raise DatasetError(
            f"none of the {len(rows):,} rows of the table of labels names a file that is here (for example {example})"
        )
    found.notes.append(f"table of labels: {len(rows):,} rows, {absent:,} of them name no file here")
    for path in plain:
        labels = sorted({class_name(row.label) for row in rows_of[path]})
        if not labels:
            yield Rejected(path, "not in the table of labels")
        elif len(labels) > 1:
            yield Rejected(path, "several labels in the table", ", ".join(labels))
        elif labels == [""]:
            yield Rejected(path, NO_LABEL, "its name stands for several files: add folders" * bool(ambiguous))
        else:
            found.classes.update(labels)
            row = rows_of[path][0]
            yield LabelRow(path, labels[0], split_named(row.split), row.group)


def _paths_named(name: str, paths: Sequence[str]) -> list[str]:
    """Of files with the right base name, those that share most trailing folders with a name: one, or several to choose from."""
    folders = name.split("/")[:-1]
    tail = ""
    while folders and len(paths) > 1:
        tail = f"{folders.pop()}/{tail}"
        paths = [path for path in paths if f"/{path.rpartition('/')[0]}/".endswith(f"/{tail}")] or paths
    return list(paths)


def _check_names(found: ClassFolders) -> None:
    """Check that no two classes look alike.

    Raises:
        DatasetError: two differ in case, blanks or Unicode form only.
    """
    parts = {part for paths in found.files.values() for path in paths for part in path.split("/")[:-1]}
    spelt = {part.removesuffix(".zip") for part in parts if class_name(part) in found.files}
    alike = defaultdict(set)
    for name in spelt | (set(found.files) - set(map(class_name, spelt))):  # not all are folders: a table's
        alike[_looks(class_name(name))].add(name)
    if pair := next((sorted(names) for names in alike.values() if len(names) > 1), None):
        names = " and ".join(
            f"'{shown(name)}'" if name.isascii() else f"'{shown(name)}' ({name!a})" for name in pair
        )
        raise DatasetError(
            f"the classes {names} look alike (case, blanks or Unicode form): rename or join them"
        )


def _looks(name: str) -> str:
    """What a reader sees of a name: nothing of case, kind of blank, invisible characters, and script of a letter."""
    seen = unicodedata.normalize("NFKC", name).casefold().translate(LOOK_ALIKE)
    return re.sub(r"[\s_]+", " ", "".join(char for char in seen if unicodedata.category(char) != "Cf"))


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
        found[name] = _paths_named(
            name, [path for label in labels for path in by_name.get((label, last), ())]
        )
    return found
