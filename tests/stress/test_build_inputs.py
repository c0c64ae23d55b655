"""Property tests of the build's inputs: folder trees, names, bytes, tables. No traceback, and no file dropped silently.

`make stress` tries 2,000 inputs (set BONE_MARROW_EXAMPLES for another number), `make test` 25.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dataset_script.classes import arrange
from dataset_script.records import Rejected
from dataset_script.source import DatasetError, Sources
from dataset_script.validate import check
from hub_model.inference.text import printable
from tests.pictures import encoded, noise

RNG = np.random.default_rng(0)
PICTURES = [encoded(noise(RNG, 32), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")]
WORDS = [
    "BLA", "EOS", "bla", "train", "Test", "val_data", "fold_1", "patient 2", "images", "0001-1000", "a", "b", "é", "e\u0301",
    "no", "1e3", "a,b", "🧬", " a", "__MACOSX", ".hidden", "x.zip", "Größe", "seg_train",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
NAMES = st.one_of(st.sampled_from(WORDS), TEXT).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 100
)
ENDINGS = st.sampled_from(["", ".png", ".jpg", ".JPG", ".tif", ".svs", ".heic", ".txt", ".zip", ".csv"])
TABLE_NAMES = st.sampled_from(
    ["labels.csv", "metadata.csv", "labels.tsv", "metadata.parquet", "metadata.jsonl"]
)
PICTURE = st.sampled_from(PICTURES)
CUT = PICTURE.flatmap(lambda data: st.integers(0, len(data)).map(lambda length: data[:length]))
BYTES = st.one_of(PICTURE, st.binary(max_size=80), CUT)
CELLS = st.sampled_from(
    ["file_name", "label", "split", "a", "b", "1.png", "BLA/1.png", "train", "C:\\x\\1.png", ""]
)
ABOVE = [[""], [""], ["w/"], ["train/", "Test/"], ["fold_1/", "fold_2/"], ["patient 1/", "patient 2/"]]
Tree = dict[str, bytes]  # paths and bytes


@st.composite
def tables(draw) -> bytes:
    rows = draw(st.lists(st.lists(st.one_of(CELLS, NAMES), min_size=1, max_size=4), max_size=6))
    separator, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n"]))
    text = end.join(separator.join(row) for row in rows)
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])), "replace")


@st.composite
def trees(draw) -> Tree:
    """Files in folders that share names, so that some look like classes, splits or patients."""
    folders = draw(st.lists(st.lists(NAMES, max_size=3), min_size=1, max_size=5))
    files = {}
    for number in range(draw(st.integers(0, 10))):
        folder = draw(st.sampled_from(folders))
        files["/".join([*folder, draw(NAMES) + str(number) + draw(ENDINGS)])] = draw(BYTES)
    for folder in draw(st.lists(st.sampled_from(folders), max_size=2)):
        files["/".join([*folder, draw(TABLE_NAMES)])] = draw(tables())
    return files


@st.composite
def class_trees(draw) -> Tree:
    """Typical inputs: classes below splits, folds, patients or nothing, sometimes with stray files."""
    classes = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    below = draw(st.sampled_from(["", "", "0001/", "images/"]))
    ending = draw(st.sampled_from([".png", ".JPG", ""]))
    folders = [f"{top}{name}/{below}" for top in draw(st.sampled_from(ABOVE)) for name in classes]
    files = {f"{folder}{i}{ending}": draw(BYTES) for folder in folders for i in range(2)}
    return files | draw(st.one_of(st.just({}), st.just({}), trees()))


@st.composite
def inputs(draw) -> tuple[Tree, bytes | None]:
    """A tree and a table of labels, which lists its files or unrelated ones, or no table."""
    files = draw(st.one_of(trees(), class_trees(), class_trees()))
    if draw(st.integers(0, 3)):
        return files, None
    labels = st.sampled_from(["a", "b", "no", "\u00e9", ""])
    rows = [f'"{path}",{draw(labels)}' for path in files if '"' not in path]
    return files, draw(st.one_of(tables(), st.just("\n".join(["file_name,label", *rows]).encode())))


def write_tree(root: Path, files: Tree, as_zip: bool) -> Path:
    if as_zip:
        with zipfile.ZipFile(root / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in files.items():
                archive.writestr(path, data)
        return root / "raw.zip"
    (root / "raw").mkdir()
    for path, data in files.items():
        try:
            (root / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "raw" / path).write_bytes(data)
        except OSError:  # a path of this tree is both a file and a folder
            continue
    return root / "raw"


def try_input(
    tree: tuple[Tree, bytes | None], as_zip: bool, group_by: str | None, classes: tuple[str, ...]
) -> None:
    files, table = tree
    with tempfile.TemporaryDirectory() as root:
        try:
            sources = Sources([str(write_tree(Path(root), files, as_zip))])
            listed = list(sources.parts[""].listing())
            labels = None if table is None else ("labels.csv", table)
            arranged = arrange(sources, classes, group_by, labels)
        except DatasetError as error:
            event("refused")
            assert str(error) and "\n" not in printable(str(error)) and len(str(error)) < 3000
            return
        event("read")
        accepted = [path for paths in arranged.files.values() for path in paths]
        counted = len(accepted) + len(arranged.rejected) + arranged.left_out
        assert counted == len(listed) == arranged.seen, "a file was dropped silently"
        assert (
            len(arranged.files) >= 2 and all(arranged.files.values()) and all(map(str.strip, arranged.files))
        )
        assert len({name.casefold().strip() for name in arranged.files}) == len(arranged.files)
        assert all(item.reason for item in arranged.rejected)
        for path in accepted[:5]:
            verdict = check(path, sources.read(path))
            assert not isinstance(verdict, Rejected) or (verdict.reason and "\n" not in verdict.detail)


INPUTS = given(
    tree=inputs(), as_zip=st.booleans(), group_by=st.sampled_from([None, None, None, "patient", "fold"]),
    classes=st.sampled_from([(), (), (), (), ("a", "b"), ("BLA", "EOS")]),
)  # fmt: skip
STRESS_EXAMPLES = int(os.environ.get("BONE_MARROW_EXAMPLES", 2_000))


@pytest.mark.parametrize(
    "examples", [25, pytest.param(STRESS_EXAMPLES, marks=[pytest.mark.stress, pytest.mark.timeout(3600)])]
)
def test_inputs_are_read_or_rejected_with_one_sentence(examples: int) -> None:
    checks = list(HealthCheck)
    common = {"deadline": None, "suppress_health_check": checks, "derandomize": True, "database": None}
    settings(max_examples=examples, **common)(INPUTS(try_input))()
