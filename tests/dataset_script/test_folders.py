"""How folders are read: as splits, groups and classes, or refused as ambiguous; and which images a test list matches."""

from __future__ import annotations

from collections import Counter

import pytest

from dataset_script.__main__ import class_list
from dataset_script.classes import find_listed
from dataset_script.source import DatasetError
from tests.dataset_script.raw_folders import arranged


def each(tops: str, classes: str = "a b") -> list[str]:
    """Return the path of one image in each class folder of each top folder."""
    return [f"{top}/{name}/1.png" for top in tops.split() for name in classes.split()]


SPLITS = [
    (each("TRAIN TEST TEST_SIMPLE"), {"train": 2, "test": 4}),
    (each("training testing"), {"train": 2, "test": 2}),
    (each("train_data test_data"), {"train": 2, "test": 2}),
    (each("Train Val test"), {"train": 2, "validation": 2, "test": 2}),
    (each("wrapper/train wrapper/valid"), {"train": 2, "validation": 2}),
    (each("seg_train/seg_train seg_test/seg_test"), {"train": 2, "test": 2}),
    (each("train/images validation/images"), {"train": 2, "validation": 2}),
    (each("TrainSet testset"), {"train": 2, "test": 2}),
    (each("train eval HOLDOUT"), {"train": 2, "validation": 2, "test": 2}),
    (each("a b", "train test"), {"train": 2, "test": 2}),
    (each("split=train split=test"), {"train": 2, "test": 2}),
]


@pytest.mark.parametrize(("paths", "splits"), SPLITS)
def test_split_folders_are_read_as_splits(paths, splits) -> None:
    found = arranged(*paths)
    assert list(found.files) == ["a", "b"] and Counter(found.split_of.values()) == splits


AMBIGUOUS = [
    (each("fold_0 fold_1 fold_2", "all hem"), "look like folds.*--classes all,hem.*--group_by fold"),
    (each("patient_01 patient_02"), "look like folds, patients"),
    (each("fold_0 fold_1", "a b c d e"), "--classes a,b,c,d,… if those are"),  # not all, and says so
    (["Patient 1/1.png", "Patient 2/1.png"], "look like folds, patients"),
    (each("001 002", "neutrophil blast"), "hold folders of the same names.*--group_by patient"),
    (each("siteA siteB", "neutrophil blast"), "hold folders of the same names"),
    (each("part1", "a b") + each("part2", "c d"), "look like folds, patients or parts"),
    (each("mine", "BLA EOS") + each("yours", "LYT"), "hold folders that look like the classes"),
    (each("granulocytes", "neutrophil eosinophil") + each("lymphoid", "b t"), "hold several folders each"),
    (each("train test unlabelled"), "are splits and some are not"),
    (each("a b", "train test other"), "hold folders of the same names"),
    (each("Fold1/train Fold1/test Fold2/train Fold2/test"), "look like folds.*--classes a,b"),
    (["train/1.png", "val/1.png", "test/2.png"], "folders test, train, val are splits without class folders.*--labels"),
    (["images/1.png", "masks/1.png"], "not like classes"),
    (["\udcff/0.png", "\\xff/1.png"], "look alike"),
]  # fmt: skip


@pytest.mark.parametrize(("paths", "sentence"), AMBIGUOUS)
def test_ambiguous_folders_are_refused(paths, sentence) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arranged(*paths)


CLASSES = [
    ["BLA/0001-1000/1.png", "EOS/0001-1000/1.png", "EOS/1001-2000/1.png"],  # the archive's
    ["a/0001/1.png", "b/0001/1.png", "b/0002/1.png"],
    ["a/patient1/1.png", "b/patient1/1.png", "b/patient2/1.png"],
    ["a/images/1.png", "b/images/1.png"],
    ["test/1.png", "control/1.png"],
    ["1/1.png", "2/1.png"],
]


@pytest.mark.parametrize("paths", CLASSES)
def test_unambiguous_folders_are_classes(paths) -> None:
    found = arranged(*paths)
    assert list(found.files) == sorted({path.split("/")[0] for path in paths}) and not found.split_of


PATIENTS = [f"{name}/Patient {i}/1.png" for name in "ab" for i in (1, 2)]
ANSWERS = [
    (each("patient_1 patient_2"), {"group_by": "patient"}, {"patient_1", "patient_2"}),
    (PATIENTS, {"group_by": "patient"}, {"Patient 1", "Patient 2"}),
    (each("001 002", "neutrophil blast"), {"group_by": "patient"}, {"001", "002"}),
    (each("train/p1 test/p2"), {"group_by": "p"}, {"p1", "p2"}),
    (each("fold_0 fold_1"), {"selected": ("a", "b")}, set()),
    (each("fold_0 fold_1", "a b c"), {"selected": ("a", "b"), "group_by": "fold"}, {"fold_0", "fold_1"}),
]


@pytest.mark.parametrize(("paths", "options", "groups"), ANSWERS)
def test_options_resolve_the_ambiguity(paths, options, groups) -> None:
    found = arranged(*paths, **options)
    assert len(found.files) == 2 and sum(map(len, found.files.values())) + found.left_out == len(paths)
    assert set(found.group_of.values()) == groups


WRONG_ANSWERS = [
    ({"group_by": "patient"}, "no folder name begins with it"),
    ({"selected": ("a", "c")}, "no class c; found: a, b"),
    ({"selected": ("c",)}, "no class folder c; found: a, b"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG_ANSWERS)
def test_an_option_that_matches_no_folder_is_refused(options, sentence) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arranged("a/1.png", "b/1.png", **options)


def test_names_in_a_class_list_may_contain_commas_and_newlines() -> None:
    assert class_list('"blast, small",BLA') == ("blast, small", "BLA")
    assert class_list("A,B\r\n") == ("A", "B")
    assert class_list("b\nc, d") == (r"b\x0ac", "d")


SKIPPED = [
    (["a/1.svs", "b/2.svs"], r"found: none; skipped: 2 .svs \(folder without readable images: save"),
    (["1.png", "2.png"], r"found: none; skipped: 2 .png \(outside the class folders: .*--labels FILE"),
    ([], r"found: none \(it is empty\)"),
    (["a/1.npy", "b/1.npy"], r"skipped: 2 .npy \(folder without readable images"),
]


@pytest.mark.parametrize(("paths", "sentence"), SKIPPED)
def test_the_error_for_no_classes_says_what_was_skipped(paths, sentence) -> None:
    with pytest.raises(DatasetError, match=sentence):
        arranged(*paths)


def test_an_image_without_an_ending_is_read_and_a_folder_without_images_is_noted() -> None:
    found = arranged("a/1", "b/2", "c/3.svs")
    assert found.files == {"a": ["a/1"], "b": ["b/2"]}
    assert found.notes == ["no readable images in the folders c"]


@pytest.mark.parametrize(
    "pair",
    ["BLA|bla", "BLA|BLA ", "\u00e9|e\u0301", "a b|a  b", "a_b|a b", "BLA\u200b|BLA", "x|x\u00ad", "B|\u0412",
     "b-cell|b\u2013cell", "stra\u00dfe|strasse"],
)  # fmt: skip
def test_classes_that_look_alike_are_refused(pair: str) -> None:
    with pytest.raises(DatasetError, match="look alike"):
        arranged(*(f"{name}/1.png" for name in pair.split("|")))


LISTED = [
    ("/elsewhere/a/0.png", ["set/a/s1/0.png", "set/a/s2/0.png"]),
    ("a/s1/0.png", ["set/a/s1/0.png"]),
    ("a/s3/0.png", ["set/a/s1/0.png", "set/a/s2/0.png"]),
    ("s1/0.png", ["set/a/s1/0.png"]),
    ("unknown/0.png", ["set/a/s1/0.png", "set/a/s2/0.png", "set/b/0.png"]),
    ("0.png", ["set/a/s1/0.png", "set/a/s2/0.png", "set/b/0.png"]),
    ("c/0.png", []),  # a class that --classes leaves out
    ("b/1.png", []),
]


@pytest.mark.parametrize(("name", "paths"), LISTED)
def test_a_listed_name_matches_by_class_and_then_by_trailing_folders(name, paths) -> None:
    """A bare name matches every image of that name."""
    files = ("set/a/s1/0.png", "set/a/s2/0.png", "set/a/s2/1.png", "set/b/0.png", "set/c/0.png")
    assert find_listed(arranged(*files, selected=["a", "b"]), [name]) == {name: paths}
