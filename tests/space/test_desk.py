"""The review desk: counts, corrections and exports."""

import csv
import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import gradio as gr
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from PIL import Image, ImageEnhance

from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.appearance import appearance
from hub_model.inference.calibration import Calibration, Verdict
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import ImageError
from hub_model.inference.text import csv_cell
from hub_model.studies.ood import fit_appearance
from space.api import count_rows
from space.batching import Batcher
from space.bulk import classify_uploads
from space.charts import count_chart
from space.desk import EXCLUDED, UNDECIDED, Desk, Source
from space.desk_view import export_files, push_export, summary
from space.export import Origin, as_csv, cells_csv, cells_json, class_folders, dataset_repo, report
from space.export import zipped as zipped_files
from space.inputs import values_of
from space.resources import Resources
from space.tab_cells import add_uploads, head
from space.tab_field import fraction
from space.tab_field import head as field_head
from space.texts import say_error
from space.visits import Visit
from tests.pictures import encoded
from tests.small_model_repo import LABELS
from tests.space.bad_uploads import jpeg, zipped
from tests.space.small_desk import ORIGIN, filled

FLAT = Calibration(LABELS)


@pytest.fixture(scope="module")
def classifier(small_model: Path) -> Classifier:
    return Classifier.from_pretrained(small_model)


@pytest.fixture
def desk(classifier: Classifier, tmp_path: Path) -> Desk:
    """Two cells of each class."""
    return filled(classifier, tmp_path)


@pytest.fixture
def small_desk(classifier: Classifier, tmp_path: Path) -> Desk:
    """One cell of each class."""
    return filled(classifier, tmp_path, 1)


@pytest.fixture(scope="module")
def resources(classifier: Classifier) -> Resources:
    return Resources(classifier, Batcher(classifier), None, [])


def dark(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.6)


def counts(desk: Desk, sample: str = "") -> dict[str, tuple[int, int]]:
    return {row.label: (row.by_model, row.by_you) for row in desk.count(FLAT, sample)}


def test_corrections_move_cells_from_the_models_column_to_yours(desk: Desk) -> None:
    first = desk.cells[0]
    other = next(label for label in LABELS if label != first.label)
    before = counts(desk)
    desk.correct({"0": other}, LABELS)
    after = counts(desk)
    assert after[first.label][0] == before[first.label][0] - 1
    assert after[other] == (before[other][0], 1)
    desk.correct({"0": UNDECIDED, "1": EXCLUDED}, LABELS)
    assert sum(model + you for model, you in counts(desk).values()) == len(desk.cells) - 2


def test_corrections_of_unknown_cells_or_classes_are_dropped(small_desk: Desk) -> None:
    small_desk.correct(
        {"0": "<script>", "99": "BLA", "x": "BLA", "-1": "BLA", "1": "plasma cell"}, [*LABELS, "plasma cell"]
    )
    assert small_desk.corrections == {1: "plasma cell"}


def test_late_corrections_do_not_undo_newer_ones(small_desk: Desk) -> None:
    small_desk.correct({"0": "BLA", "1": "BLA"}, LABELS, version=2)
    small_desk.correct({"0": "BLA"}, LABELS, version=1)
    assert len(small_desk.corrections) == 2


def test_a_class_can_be_left_out_of_the_denominator(desk: Desk) -> None:
    desk.correct({str(i): "NIF" for i in range(7)}, LABELS)
    desk.ignored = {"NIF"}
    rows = desk.count(FLAT)
    assert "NIF" not in {row.label for row in rows}
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert sum(row.corrected for row in rows) == pytest.approx(1, abs=1e-6)


def test_cells_counted_by_hand_are_part_of_the_count(desk: Desk) -> None:
    desk.by_hand = {"erythroblast": 14, "basophil": 0}
    rows = {row.label: row for row in desk.count(FLAT)}
    assert rows["erythroblast"].by_you == 14 and rows["erythroblast"].share == pytest.approx(0.5)
    assert rows["erythroblast"].corrected is None and "basophil" not in rows
    assert rows["erythroblast"].corrected_interval is None
    assert "erythroblast" in count_chart(list(rows.values()), "en").data[1].x
    assert sum(row.corrected or 0 for row in rows.values()) == pytest.approx(0.5, abs=1e-6)
    assert "erythroblast" not in {row.label for row in desk.count(FLAT, "slide 0")}, "it belongs to no slide"


def test_shares_are_corrected_as_the_api_does_and_what_you_said_is_certain(
    classifier: Classifier, desk: Desk
) -> None:
    expected = classifier.calibration.count(np.array([cell.probabilities for cell in desk.cells]))
    for row, count in zip(desk.count(classifier.calibration), expected, strict=True):
        assert row.corrected == pytest.approx(count.corrected)
        assert row.corrected_interval == pytest.approx(count.corrected_interval)
    desk.correct({str(i): "EOS" if i < 7 else "BLA" for i in range(14)}, LABELS)
    rows = {row.label: row for row in desk.count(classifier.calibration)}
    assert rows["EOS"].corrected == rows["EOS"].share == 0.5
    assert rows["EOS"].corrected_interval == pytest.approx(rows["EOS"].interval)


def test_samples_are_counted_separately_and_together(desk: Desk) -> None:
    by_sample = [counts(desk, sample) for sample in desk.samples()]
    total = counts(desk)
    assert desk.samples() == ["slide 0", "slide 1"]
    for label in LABELS:
        assert sum(count.get(label, (0, 0))[0] for count in by_sample) == total[label][0]


def test_unknown_cells_are_not_counted_until_they_are_corrected(
    classifier: Classifier, small_desk: Desk, tmp_path: Path
) -> None:
    unknown = classifier.predict(draw_cell("BLA", 1))
    unknown.verdicts[:] = [Verdict("unknown", ("BLA",))]
    cell = small_desk.add("s", "x.png", tmp_path / "0.jpg", Source("x"), unknown, 0)
    assert sum(row.cells for row in small_desk.count(FLAT)) == 7
    assert "1 unknown to the model, not counted" in summary("en", small_desk, small_desk.count(FLAT))
    small_desk.correct({str(cell.number): "BLA"}, LABELS)
    assert sum(row.cells for row in small_desk.count(FLAT)) == 8


def test_a_job_can_be_stopped_and_resumed(resources: Resources, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(
        zipped({f"{i}.jpg": jpeg(i % 3) for i in range(100)} | {"bad.jpg": b"x"})
    )
    answer = classify_uploads(resources, [str(tmp_path / "a.zip")], should_stop=lambda: True)
    assert len(answer.entries) == len(answer.predictions) == 32
    progress = []
    rest = classify_uploads(
        resources, [str(tmp_path / "a.zip")], lambda *counts: progress.append(counts), skip=answer.done
    )
    assert (answer.stopped, rest.stopped, progress[-1]) == (True, False, (69, 69))
    assert sorted(e.entry for e in answer.entries + rest.entries) == sorted(f"{i}.jpg" for i in range(100))
    assert [name for name, _ in answer.bad + rest.bad] == ["a.zip/bad.jpg"]


def test_what_a_stopped_job_left_is_added_once_whatever_comes_between(
    resources: Resources, tmp_path: Path
) -> None:
    visit, desk = Visit(tmp_path / "visit"), Desk(LABELS)
    paths = [str(tmp_path / name) for name in ("a.zip", "b.zip")]
    for path, pictures in zip(paths, (70, 5), strict=True):
        Path(path).write_bytes(zipped({f"{i}.jpg": jpeg(i % 3) for i in range(pictures)}))
    for path, cancelled, cells in ((paths[0], True, 32), (paths[1], False, 37), (paths[0], False, 75)):
        visit.sessions, visit.cancelled = {"page"}, cancelled
        add_uploads(resources, visit, desk, [path], lambda done, total: None)
        assert (len(desk.cells), desk.stopped) == (cells, cancelled)
    assert desk.uploads == set(paths) and desk.done == set()
    assert len({cell.source for cell in desk.cells}) == 75


def test_seven_hundred_pictures_are_seven_hundred_answers(resources: Resources, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({f"{i}.jpg": jpeg(i % 5) for i in range(700)}))
    answer = classify_uploads(resources, [str(tmp_path / "a.zip")])
    assert len(answer.predictions) == 700 and answer.bad == [] and not answer.left_out


def test_a_batch_unlike_the_training_images_comes_with_a_warning_everywhere(
    small_model: Path, classifier: Classifier, small_desk: Desk, tmp_path: Path
) -> None:
    known = [draw_cell(label, seed) for label in LABELS for seed in range(10)]
    folder = shutil.copytree(small_model, tmp_path / "model")
    calibration = json.loads((folder / "calibration.json").read_text())
    statistics = appearance(classifier.preprocess.unnormalised(classifier.preprocess(known)))
    labels, sources = classifier.predict(known).probabilities, ["a laboratory"] * len(known)
    share = np.linspace(0.1, 1, len(known))
    calibration["appearance"] = fit_appearance(statistics, labels, sources, statistics, share)
    calibration["appearance"]["threshold"] = 1e9  # no cell is out of distribution for it
    (folder / "calibration.json").write_text(json.dumps(calibration))
    careful = Classifier.from_pretrained(folder)
    resources = Resources(careful, Batcher(careful), None, [])
    for cells, warned in ((known[::3], False), ([dark(cell) for cell in known[:20]], True)):
        path = tmp_path / f"{warned}.zip"
        path.write_bytes(zipped({f"{i}.png": encoded(cell, "PNG") for i, cell in enumerate(cells)}))
        answer = classify_uploads(resources, [str(path)])
        assert all(("darker" in row["warning"]) == warned for row in count_rows(resources, answer))
        small_desk.shift = answer.predictions.shift
        small_desk.field = {"found": 7, "side": 250}
        for language, words in (("en", "darker"), ("id", "lebih gelap")):
            for draw in (head, field_head):
                assert (words in draw(language, small_desk, [], "")) == warned


@pytest.mark.parametrize(
    "sent", [{}, {"number": "x", "x": "nan"}, {"number": None, "x": 1.5}, {"number": 1e999, "x": -1}]
)
def test_an_event_that_the_page_would_not_send_is_one_sentence(sent: dict) -> None:
    event = SimpleNamespace(**sent)
    for kind in ({"number": int}, {"x": fraction}):
        with pytest.raises(gr.Error, match="upload") as error:
            values_of(event, **kind)
        assert not error.value.print_exception


# ---- exports
def test_a_desk_without_a_counted_cell_exports_no_dataset(
    resources: Resources, small_desk: Desk, tmp_path: Path
) -> None:
    visit = Visit(tmp_path / "visit")
    small_desk.correct(dict.fromkeys(map(str, range(7)), EXCLUDED), LABELS)
    names = [Path(path).name for path in export_files(resources, visit, small_desk, "cells")]
    assert names == ["cells.csv", "cells.json", "cells-report.html"]
    assert "nothing to count" in push_export(resources, visit, small_desk, "anna", "hf_x")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =cmd|' /C calc'!A0", "\r=1"])
def test_no_csv_cell_is_taken_for_a_formula(cell: str) -> None:
    assert csv_cell(cell).startswith("'")
    text = as_csv(["file", "p"], [[cell, 0.5], ['a, "b"', 1]])
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    assert text.startswith("\ufeff") and rows[1][0] == "'" + cell and rows[2] == ['a, "b"', "1"]


def test_the_table_has_every_probability_and_where_it_comes_from(small_desk: Desk) -> None:
    small_desk.correct({"0": "EOS", "1": UNDECIDED}, LABELS)
    small_desk.bad.append(("broken.jpg", ImageError("damaged")))
    text = cells_csv(small_desk, ORIGIN).removeprefix("\ufeff")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 8 and rows[0]["label"] == rows[0]["correction"] == "EOS"
    assert rows[1]["label"] == "" and rows[1]["correction"] == "undecided"
    assert sum(float(rows[0][f"p_{label}"]) for label in LABELS) == pytest.approx(1, abs=1e-4)
    assert rows[0]["model"] == ORIGIN.model and rows[0]["revision"] == ORIGIN.revision and rows[0]["date"]
    assert rows[-1]["file"] == "broken.jpg" and rows[-1]["error"].endswith(".")
    content = json.loads(cells_json(small_desk, small_desk.count(FLAT), ORIGIN))
    assert len(content["cells"]) == 8 and {row["label"] for row in content["count"]} == set(LABELS)


def test_class_folders_hold_the_original_bytes_under_the_corrected_class(small_desk: Desk) -> None:
    small_desk.correct({"0": "EOS", "1": EXCLUDED}, LABELS)
    files = dict(class_folders(small_desk))
    (moved,) = [name for name in files if "-0_" in name]
    assert moved.startswith("EOS/") and files[moved] == Path(small_desk.cells[0].source.path).read_bytes()
    assert len(files) == 6


def test_the_dataset_loads_as_it_is(classifier: Classifier, desk: Desk, tmp_path: Path) -> None:
    desk.correct({"0": "EOS"}, LABELS)
    files = dataset_repo(desk, ORIGIN, classifier.label_descriptions)
    with zipfile.ZipFile(zipped_files(files, tmp_path / "out.zip")) as archive:
        archive.extractall(tmp_path / "repo")
    card = DatasetCard.load(tmp_path / "repo" / "README.md").data
    assert card.label_descriptions == classifier.label_descriptions
    loaded = datasets.load_dataset(str(tmp_path / "repo"))
    assert set(loaded) == {"train", "validation", "test"}
    assert loaded["train"].features["label"].names == list(LABELS)
    rows = [row for split in loaded.values() for row in split]
    corrected = next(row for row in rows if "-0_" in row["file_name"])
    assert len(rows) == 14 and corrected["label"] == LABELS.index("EOS")
    assert corrected["image"].size == (250, 250)
    for split in loaded.values():
        assert {"sha256", "group"} <= set(split.features)


def test_a_picture_with_two_labels_is_in_one_split(classifier: Classifier, desk: Desk) -> None:
    same = desk.cells[0].source
    desk.cells = [replace(cell, source=same) for cell in desk.cells]
    desk.correct(dict(enumerate(LABELS)), LABELS)
    files = dict(dataset_repo(desk, ORIGIN, classifier.label_descriptions))
    (name,) = [name for name in files if name.endswith(".parquet")]
    labels = pq.read_table(io.BytesIO(files[name])).column("label").to_pylist()
    assert labels == list(range(len(LABELS)))


def test_a_report_gives_the_reasons_in_its_language(small_desk: Desk) -> None:
    small_desk.bad.append(("broken.jpg", ImageError("damaged")))
    page = report(small_desk, small_desk.count(FLAT), "id", ORIGIN, "", [], "")
    assert say_error("id", ImageError("damaged")) in page and str(ImageError("damaged")) not in page


def test_names_in_a_report_are_escaped(small_desk: Desk) -> None:
    small_desk.bad.append(("<img src=x onerror=alert(1)>.jpg", ImageError("damaged")))
    origin = Origin("<script>m</script>", "", "today")
    page = report(small_desk, small_desk.count(FLAT), "en", origin, "<b>s", ["<i>n"], "")
    assert "<script>m" not in page and "<img src=x" not in page and "<b>s" not in page and "<i>n" not in page
    assert page.count('class="range"') == 7 and np.all([label in page for label in LABELS])
