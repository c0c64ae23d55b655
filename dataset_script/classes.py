"""Which file belongs to which class: a source's listing in, files by class out, with their split and group where they have one.

Read are: one folder a class, files at any depth below it; the same below folders that are splits (`train`, `Test`, `val_data`)
or that stand alone; a table of file names and labels. What cannot be told apart is asked for, never guessed: folders that look
like folds, patients or wrappers become no classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dataset_script.folders import Folders, NamedFolders, class_name, some, split_named
from dataset_script.labels import CLASSES
from dataset_script.records import OUTSIDE, Rejected
from dataset_script.source import OUT_OF_FOLDER, PACKED, DatasetError, base_name, shown
from dataset_script.tables import LabelRow, read_labels
from hub_model.inference.images import SUFFIXES, looks_like_picture

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
    """The classes of a source and what is in them."""

    files: dict[str, list[str]] = field(default_factory=dict)  # class -> sorted paths
    split_of: dict[str, str] = field(default_factory=dict)  # path -> split, for files that come with one
    group_of: dict[str, str] = field(default_factory=dict)  # path -> group, the same
    rejected: list[Rejected] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)  # also those that --classes does not name
    left_out: int = 0  # files of classes that --classes does not name
    seen: int = 0  # all entries
    notes: list[str] = field(
        default_factory=list
    )  # what was read from folder names or tables, for the screen


def suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[-1].lower() if "." in name else ""


def arrange(
    source, wanted: Sequence[str] = (), group_by: str | None = None, labels: tuple[str, bytes] | None = None,
    least: int = 2,
) -> ClassFolders:  # fmt: skip
    """Sort a source's files into classes.

    Args:
        source: gives `listing()` and `read(path)`.
        wanted: picks classes; the others are left out, which is no rejection.
        group_by: what the names of folders that are groups begin with (`patient`); without such folders, all that are no class.
        labels: the name and bytes of a table of labels; without one, one in the source is read where its folders are no classes.
        least: how many classes there must be.

    Raises:
        DatasetError: the classes cannot be told, are too few, not those that are wanted, or look alike.
    """
    found, plain = ClassFolders(), []
    for path, reason in source.listing():
        found.seen += 1
        if reason:
            found.rejected.append(Rejected(path, *reason.split(": ", 1)))
        else:
            plain.append(path)
    pictures = [path for path in plain if _may_be_picture(source, path)]
    tables = [path for path in plain if TABLES.fullmatch(base_name(path))]
    if labels is not None:
        _by_table(found, plain, {"": read_labels(*labels)}, wanted)
    else:
        folders = Folders(pictures, group_by) if not wanted else NamedFolders(pictures, wanted, group_by)
        if tables and len(folders.names()) < 2:
            rows = {path.rpartition("/")[0]: read_labels(path, source.read(path)) for path in tables}
            _by_table(found, [path for path in plain if path not in tables], rows, wanted)
        else:
            if least > 1 or not wanted:  # of several sources, one may lack a class
                folders.check()
            _check_against_tables(source, tables, folders.names())
            _by_folders(found, plain, folders, wanted)
    _check_names(found)
    if len(found.files) < least:
        names = ", ".join(found.files) or "none"
        raise DatasetError(
            f"a dataset needs two classes with images or more; found: {names}{_passed_over(found)}"
        )
    return found


def _may_be_picture(source, path: str) -> bool:
    """Whether a file counts when folders are told apart: it has a picture's ending, or none and a picture's first bytes."""
    if "." in base_name(path):
        return suffix(path) in SUFFIXES
    try:
        return looks_like_picture("", source.read(path)[:16])
    except OSError:
        return False


def _passed_over(found: ClassFolders) -> str:
    """What was not read, by reason and ending, with the way out: "" where there is nothing."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in found.rejected:
        counts[item.reason, suffix(item.path)] += 1
    if not counts:
        return "" if found.seen else " (it is empty)"
    told = []
    for (reason, ending), number in counts.most_common(4):
        way = WAYS_OUT.get(reason)
        told.append(f"{number:,} {f'.{ending} ' if ending else ''}({reason}{f': {way}' if way else ''})")
    return f"; passed over: {', '.join(told)}"


def _check_against_tables(source, tables: Sequence[str], names: set[str]) -> None:
    """Check that a table of labels in the source, where there is one, does not tell of other classes than the folders.

    Raises:
        DatasetError: it does.
    """
    for path in tables:
        try:
            labels = {class_name(row.label) for row in read_labels(path, source.read(path))}
        except (DatasetError, OSError):  # a table of other things
            continue
        if labels - {""} and not labels & names:
            told = f"{some(labels)} in {shown(path)}, {some(names)} as folders"
            raise DatasetError(
                f"there are two kinds of classes ({told}): pass --labels FILE, or --classes with the folders' names"
            )


def _by_folders(found: ClassFolders, plain: Sequence[str], folders: Folders, wanted: Sequence[str]) -> None:
    """Put every file where its folder says: a file that is no picture goes with the pictures beside it, to be rejected there."""
    label_of_folder = {path.rpartition("/")[0]: folders.label(path) for path in folders.rest}
    tops_with_pictures = {folder.partition("/")[0] for folder in label_of_folder}
    known = set(label_of_folder.values()) - {""}
    published = known & set(CLASSES)
    unknown = known - published if 2 * len(published) > len(known) and not wanted else set()
    found.classes = known - unknown
    for path in plain:
        label = folders.label(path) if path in folders.rest else _nearest(path, label_of_folder)
        if not label:
            inside = "/" in path and path.partition("/")[0] not in tops_with_pictures
            found.rejected.append(Rejected(path, NO_PICTURES if inside else OUTSIDE))
        elif label in unknown:
            found.rejected.append(Rejected(path, "unknown class folder"))
        elif wanted and label not in wanted:
            found.left_out += 1
        else:
            found.files.setdefault(label, []).append(path)
            found.split_of.update({path: folders.split_of[path]} if path in folders.split_of else {})
            found.group_of.update({path: folders.group_of[path]} if path in folders.group_of else {})
    found.files = dict(sorted(found.files.items()))
    if bare := {item.path.partition("/")[0] for item in found.rejected if item.reason == NO_PICTURES}:
        found.notes.append(f"no pictures that are read in the folders {some(bare)}")
    if folders.split_folders:
        found.notes.append(f"splits read from the folders {', '.join(folders.split_folders)}")
    if folders.group_by:
        found.notes.append(
            f"{len(set(found.group_of.values())):,} groups read from folder names ({folders.group_by})"
        )


def _nearest(path: str, label_of_folder: dict[str, str]) -> str:
    """The class of the folder of pictures that a file is in, at any depth."""
    folder = path.rpartition("/")[0]
    while folder and folder not in label_of_folder:
        folder = folder.rpartition("/")[0]
    return label_of_folder.get(folder, "")


def _by_table(
    found: ClassFolders, plain: Sequence[str], tables: dict[str, list[LabelRow]], wanted: Sequence[str]
) -> None:
    """Put every file where a table's row says; each table's names are relative to the folder that it is in."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in plain:
        name = base_name(path)
        bare = name.rpartition(".")[0] or name
        for key in {name, bare, f"/{name.lower()}", f"/{bare.lower()}"}:  # no ending, or in another case
            by_name[key].append(path)
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    absent = ambiguous = 0
    for folder, rows in tables.items():
        for row in rows:
            paths = by_name.get(base_name(row.name)) or by_name.get(f"/{base_name(row.name).lower()}", ())
            paths = _paths_named(f"{folder}/{row.name}".lstrip("/"), paths)
            absent, ambiguous = absent + (not paths), ambiguous + (len(paths) > 1)
            for path in paths:
                rows_of[path].append(row if len(paths) == 1 else LabelRow(row.name, ""))
    files = defaultdict(list)
    for path in plain:
        rows = rows_of.get(path, [])
        labels = {class_name(row.label) for row in rows}
        if not rows:
            found.rejected.append(Rejected(path, "not in the table of labels"))
        elif len(labels) > 1:
            found.rejected.append(Rejected(path, "several labels in the table", ", ".join(sorted(labels))))
        elif labels == {""}:
            detail = "its name stands for several files: add folders" if ambiguous else ""
            found.rejected.append(Rejected(path, NO_LABEL, detail))
        elif wanted and not labels & set(wanted):
            found.left_out += 1
            found.classes |= labels
        else:
            files[labels.pop()].append(path)
            split, group = split_named(rows[0].split), rows[0].group
            found.split_of.update({path: split} if split else {})
            found.group_of.update({path: group} if group else {})
    found.files = dict(sorted(files.items()))
    found.classes |= set(files)
    total = sum(map(len, tables.values()))
    if not rows_of:
        example = next((shown(row.name) for rows in tables.values() for row in rows), "none")
        raise DatasetError(
            f"none of the {total:,} rows of the table of labels names a file that is here (for example {example})"
        )
    if missing := sorted(set(wanted) - set(files)):
        raise DatasetError(
            f"no class {', '.join(missing)} in the table; there are: {', '.join(sorted(found.classes))}"
        )
    found.notes.append(f"table of labels: {total:,} rows, {absent:,} of them name no file here")


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
    alike = defaultdict(set)
    for name in found.files:
        alike[_looks(name)].add(name)
    folders = defaultdict(set)  # two folders of one source may come to one name
    for path in (path for paths in found.files.values() for path in paths):
        for part in path.split("/")[:-1]:
            folders[class_name(part)].add(part)
    pairs = [sorted(names) for names in alike.values() if len(names) > 1]
    pairs += [
        sorted(folders[name])
        for name in found.files
        if len({f.removesuffix(".zip") for f in folders[name]}) > 1
    ]
    if pairs:
        names = " and ".join(
            f"'{shown(name)}'" if name.isascii() else f"'{shown(name)}' ({name!a})" for name in pairs[0]
        )
        raise DatasetError(
            f"the classes {names} look alike (case, blanks or Unicode form): rename or join them"
        )


def _looks(name: str) -> str:
    """What a reader sees of a name: nothing of case, kind of blank, invisible characters, and script of a letter."""
    seen = unicodedata.normalize("NFKC", name).casefold().translate(LOOK_ALIKE)
    return re.sub(r"[\s_]+", " ", "".join(char for char in seen if unicodedata.category(char) != "Cf"))


def merge(parts: dict[str, ClassFolders]) -> ClassFolders:
    """Join the classes of several sources, each path with its source's name before it.

    Raises:
        DatasetError: two classes look alike.
    """
    whole = ClassFolders()
    files: dict[str, list[str]] = defaultdict(list)
    for name, part in parts.items():
        for label, paths in part.files.items():
            files[label] += [f"{name}/{path}" for path in paths]
        whole.split_of.update({f"{name}/{path}": split for path, split in part.split_of.items()})
        whole.group_of.update({f"{name}/{path}": f"{name}/{group}" for path, group in part.group_of.items()})
        whole.rejected += [
            Rejected(f"{name}/{item.path}", item.reason, item.detail) for item in part.rejected
        ]
        whole.classes |= part.classes
        whole.left_out, whole.seen = whole.left_out + part.left_out, whole.seen + part.seen
        whole.notes += [f"{name}: {note}" for note in part.notes]
    whole.files = dict(sorted(files.items()))
    _check_names(whole)
    return whole


def pick(folders: ClassFolders, wanted: Sequence[str]) -> ClassFolders:
    """Leave out the classes that --classes does not name.

    Raises:
        DatasetError: a wanted class is not there, or fewer than two are left.
    """
    if missing := sorted(set(wanted) - set(folders.files)):
        raise DatasetError(
            f"no class folder {', '.join(missing)}; there are: {', '.join(folders.files) or 'none'}"
        )
    for name in set(folders.files) - set(wanted or folders.files):
        folders.left_out += len(folders.files.pop(name))
    if len(folders.files) < 2:
        raise DatasetError(
            f"a dataset needs two classes with images or more; found: {', '.join(folders.files) or 'none'}"
        )
    return folders


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
