"""Sorts files into classes: the listing of a source in; files by class, with their split and group if known, out.

Three layouts are read: one folder per class, with files at any depth below it; the same inside split folders (`train`, `Test`,
`val_data`) or a single wrapper folder; a table of file names and labels. Ambiguous layouts are reported, never guessed:
folders that look like folds, patients or wrappers do not become classes.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dataset_script.folders import ZIP_SUFFIX, Folders, class_name, first_few, split_named
from dataset_script.labels import CLASSES
from dataset_script.records import OUTSIDE, Rejected
from dataset_script.source import OUT_OF_FOLDER, PACKED, DatasetError, Sources, base_name
from dataset_script.tables import LabelRow, read_labels
from hub_model.inference.images import SUFFIXES, looks_like_image
from hub_model.inference.text import printable

TABLES = re.compile(r"(metadata|labels)\.(csv|tsv|parquet|jsonl)", re.IGNORECASE)
NO_LABEL = "no label in the table"
NO_PICTURES = "folder without readable images"
# dashes, and Cyrillic and Greek letters (casefolded) that look like Latin ones
LOOK_ALIKE = str.maketrans("авекмнорстухіјѕαβεζηικμνορτυχ‐‑‒–—−", "abekmhopctyxijsabezhikmnoptyx------")
HINTS = {  # by reason of rejection
    OUT_OF_FOLDER: "pass --follow_links, or copy the files",
    OUTSIDE: "put them into one folder per class, or pass --labels FILE",
    PACKED: "unpack it",
    NO_PICTURES: "save the pictures as JPEG, PNG or TIFF",
    NO_LABEL: "add the folder to names that match several files",
}


@dataclass
class ClassFolders:
    """The classes and their files."""

    files: dict[str, list[str]] = field(default_factory=dict)  # class -> sorted paths
    split_of: dict[str, str] = field(default_factory=dict)  # path -> split, for files that come with one
    group_of: dict[str, str] = field(default_factory=dict)  # path -> group, likewise
    rejected: list[Rejected] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)  # including those not named by --classes
    left_out: int = 0  # files of classes not named by --classes
    seen: int = 0  # all entries
    notes: list[str] = field(default_factory=list)  # on the splits, groups and tables that were read

    def add(self, other: ClassFolders, name: str) -> None:
        """Add the files of a source; its name, unless "", is put before each path."""
        prefix, note_prefix = (f"{name}/", f"{name}: ") if name else ("", "")
        for label, paths in other.files.items():
            self.files.setdefault(label, []).extend(prefix + path for path in paths)
        self.split_of.update({prefix + path: split for path, split in other.split_of.items()})
        self.group_of.update({prefix + path: prefix + group for path, group in other.group_of.items()})
        self.rejected += [Rejected(prefix + item.path, item.reason, item.detail) for item in other.rejected]
        self.classes |= other.classes
        self.left_out += other.left_out
        self.seen += other.seen
        self.notes += [note_prefix + note for note in other.notes]


def suffix(path: str) -> str:
    """Return the lowercase ending of a path without its dot, "" if none."""
    _, dot, ending = base_name(path).rpartition(".")
    return ending.lower() if dot else ""


def arrange(
    sources: Sources, selected: Sequence[str] = (), group_by: str | None = None, labels: tuple[str, bytes] | None = None
) -> ClassFolders:  # fmt: skip
    """Sort the files of all sources into classes.

    Args:
        selected: classes to keep, all by default; files of the others are left out, not rejected.
        group_by: prefix of the folders that are groups (`patient`); if no folder has it, every folder that is not a class.
        labels: name and bytes of a label table; by default, a table in a source is read if its folders are not classes.

    Raises:
        DatasetError: the classes are ambiguous, there are fewer than two, a selected one is missing, or two names look alike.
    """
    merged = ClassFolders()
    for name, source in sources.parts.items():
        result = _arrange_one(source, selected, group_by, labels)
        if name:
            _check_number(result, 1)
        merged.add(result, name)
    merged.files = dict(sorted(merged.files.items()))
    if missing := sorted(set(selected) - set(merged.files)):
        names = first_few(merged.classes, 20) or "none"
        raise DatasetError(f"no class {', '.join(missing)}; found: {names}{_skipped(merged)}")
    _check_names(merged)
    _check_number(merged, 2)
    return merged


def _arrange_one(
    source, selected: Sequence[str], group_by: str | None, labels: tuple[str, bytes] | None
) -> ClassFolders:
    result, files = ClassFolders(), []
    for path, reason in source.listing():
        result.seen += 1
        if reason:
            result.rejected.append(Rejected(path, *reason.split(": ", 1)))
        else:
            files.append(path)
    tables = [path for path in files if TABLES.fullmatch(base_name(path))]
    if labels is not None:
        rows = _by_table(result, files, {"": read_labels(*labels)})
    else:
        folders = Folders([path for path in files if _may_be_image(source, path)], selected, group_by)
        if tables and len(folders.names) < 2:
            labels_of = {path.rpartition("/")[0]: read_labels(path, source.read(path)) for path in tables}
            rows = _by_table(result, [path for path in files if path not in tables], labels_of)
        else:
            folders.check()
            _check_against_tables(source, tables, folders.names)
            rows = _by_folders(result, files, folders)
    for row in rows:
        if isinstance(row, Rejected):
            result.rejected.append(row)
        elif selected and row.label not in selected:
            result.left_out += 1
        else:
            result.files.setdefault(row.label, []).append(row.file)
            result.split_of.update({row.file: row.split} if row.split else {})
            result.group_of.update({row.file: row.group} if row.group else {})
    return result


def _may_be_image(source, path: str) -> bool:
    """Whether a file has the ending of an image or, without an ending, the first bytes of one."""
    if "." in base_name(path):
        return suffix(path) in SUFFIXES
    try:
        return looks_like_image("", source.read(path)[:16])
    except OSError:
        return False


def _check_number(result: ClassFolders, minimum: int) -> None:
    """Raise DatasetError, with the skipped files and what to do about them, if there are fewer than `minimum` classes."""
    if len(result.files) < minimum:
        names = ", ".join(result.files) or "none"
        raise DatasetError(
            f"a dataset needs at least two classes with images; found: {names}{_skipped(result)}"
        )


def _skipped(result: ClassFolders) -> str:
    """Return the end of an error message: the skipped files by reason and ending, each with a hint."""
    counts = Counter((item.reason, suffix(item.path)) for item in result.rejected)
    if not counts:
        return "" if result.seen else " (it is empty)"
    items = []
    for (reason, ending), n in counts.most_common(4):
        hint = f": {HINTS[reason]}" if reason in HINTS else ""
        items.append(f"{n:,} {f'.{ending} ' if ending else ''}({reason}{hint})")
    return f"; skipped: {', '.join(items)}"


def _check_against_tables(source, tables: Sequence[str], names: set[str]) -> None:
    """Raise DatasetError if a label table in the source has none of the classes of the folders."""
    for path in tables:
        labels = set()
        with contextlib.suppress(DatasetError, OSError):  # not a label table
            labels = {class_name(row.label) for row in read_labels(path, source.read(path))} - {""}
        if labels and not labels & names:
            raise DatasetError(
                f"the classes in {printable(path)} ({first_few(labels)}) are not those of the folders ({first_few(names)}): pass "
                "--labels FILE, or --classes with the folder names"
            )


def _by_folders(result: ClassFolders, files: list[str], folders: Folders) -> Iterator[LabelRow | Rejected]:
    """Yield each file with the class of its folder; a file in a folder without images takes that of the nearest one above.

    Files that are not images are included: decoding rejects them later.
    """
    label_of_folder = {path.rpartition("/")[0]: folders.label(path) for path in folders.folders_of}
    tops_with_images = {folder.partition("/")[0] for folder in label_of_folder}
    published = folders.names & set(CLASSES)
    are_published = 2 * len(published) > len(folders.names) and not folders.selected
    result.classes = published if are_published else folders.names
    without_images = set()
    for path in files:
        folder = path.rpartition("/")[0]
        while folder and folder not in label_of_folder:
            folder = folder.rpartition("/")[0]
        label = label_of_folder.get(folder, "")
        top, below, _ = path.partition("/")
        if label in result.classes:
            yield LabelRow(path, label, folders.split_of.get(path, ""), folders.group_of.get(path, ""))
        elif label:
            yield Rejected(path, "unknown class folder")
        elif below and top not in tops_with_images:
            without_images.add(top)
            yield Rejected(path, NO_PICTURES)
        else:
            yield Rejected(path, OUTSIDE)
    if without_images:
        result.notes.append(f"no readable images in the folders {first_few(without_images)}")
    if folders.split_folders:
        result.notes.append(f"splits read from the folders {', '.join(folders.split_folders)}")
    if folders.group_by:
        groups = len(set(result.group_of.values()))
        result.notes.append(f"{groups:,} groups read from folder names ({folders.group_by})")


def _by_table(
    result: ClassFolders, files: list[str], tables: dict[str, list[LabelRow]]
) -> Iterator[LabelRow | Rejected]:
    """Yield each file with the class of its table row; `tables` has the rows by the folder that their names are relative to."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in files:
        name = base_name(path)
        stem = name.rpartition(".")[0] or name
        for key in {name, stem, f"/{name.lower()}", f"/{stem.lower()}"}:  # without ending, or in another case
            by_name[key].append(path)
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    rows = [(folder, row) for folder, rows in tables.items() for row in rows]
    missing = ambiguous = 0
    for folder, row in rows:
        name = base_name(row.file)
        candidates = by_name.get(name) or by_name.get(f"/{name.lower()}", [])
        paths = _paths_named(f"{folder}/{row.file}".lstrip("/"), candidates)
        missing += not paths
        ambiguous += len(paths) > 1
        for path in paths:
            rows_of[path].append(row if len(paths) == 1 else LabelRow(row.file, ""))
    if not rows_of:
        example = printable(rows[0][1].file) if rows else "none"
        raise DatasetError(
            f"none of the {len(rows):,} rows of the table of labels names a file of the source (for example {example})"
        )
    result.notes.append(f"table of labels: {len(rows):,} rows, {missing:,} of them match no file")
    for path in files:
        labels = sorted({class_name(row.label) for row in rows_of[path]})
        if not labels:
            yield Rejected(path, "not in the table of labels")
        elif len(labels) > 1:
            yield Rejected(path, "several labels in the table", ", ".join(labels))
        elif labels == [""]:
            yield Rejected(path, NO_LABEL, "its name matches several files: add folders" * bool(ambiguous))
        else:
            result.classes.update(labels)
            row = rows_of[path][0]
            yield LabelRow(path, labels[0], split_named(row.split), row.group)


def _paths_named(name: str, paths: list[str]) -> list[str]:
    """Return those of `paths`, which have the right base name, that share the most trailing folders with `name`."""
    folders = name.split("/")[:-1]
    tail = ""
    while folders and len(paths) > 1:
        tail = f"{folders.pop()}/{tail}"
        paths = [path for path in paths if f"/{path.rpartition('/')[0]}/".endswith(f"/{tail}")] or paths
    return paths


def _check_names(result: ClassFolders) -> None:
    """Raise DatasetError if two class names, as folders spell them, look alike."""
    parts = {part for paths in result.files.values() for path in paths for part in path.split("/")[:-1]}
    spellings = {ZIP_SUFFIX.sub("", part) for part in parts if class_name(part) in result.files}
    alike = defaultdict(set)
    # the classes of a table need not be folders
    for name in spellings | (set(result.files) - set(map(class_name, spellings))):
        alike[_appearance(class_name(name))].add(name)
    if same := next((sorted(names) for names in alike.values() if len(names) > 1), None):
        listing = " and ".join(
            f"'{printable(name)}'" + f" ({name!a})" * (not name.isascii()) for name in same
        )
        raise DatasetError(
            f"the classes {listing} look alike (case, whitespace or Unicode form): rename or merge them"
        )


def _appearance(name: str) -> str:
    """Return a name without case, kind of whitespace, invisible characters and script of its letters."""
    folded = unicodedata.normalize("NFKC", name).casefold().translate(LOOK_ALIKE)
    return re.sub(r"[\s_]+", " ", "".join(char for char in folded if unicodedata.category(char) != "Cf"))


def find_listed(folders: ClassFolders, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the paths that match each name of a test list: several if the name is ambiguous.

    A match has the same file name and, if the listed name contains a class folder, that class; of several, those that share the
    most trailing folders are kept. So `x.jpg` matches every x.jpg, and `/elsewhere/BLA/0001/x.jpg` matches `BLA/x.jpg`.
    """
    by_name: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, paths in folders.files.items():
        for path in paths:
            by_name[label, base_name(path)].append(path)
    matches = {}
    for name in names:
        *parents, last = name.split("/")
        labels = folders.classes.intersection(parents) or folders.files
        matches[name] = _paths_named(name, [p for label in labels for p in by_name.get((label, last), ())])
    return matches
