"""Bulk scoring: every image is one row, in order; predictions are never overwritten by default, and errors are one sentence."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from hub_model import score_output
from hub_model.__main__ import main
from hub_model.inference.classifier import Classifier
from tests.hub_model.scoring import (
    MODULE,
    TWO,
    arguments_of,
    kill_midway,
    paths_below,
    refusal,
    score,
    write_images,
)
from tests.hub_model.small_classifier import LABELS, write_model


def score_rows(source, model, out, *options) -> list[dict]:
    """Score, and return the rows of OUT."""
    assert score(source, model, out, *options) == 0
    return pq.read_table(out).to_pylist()


def test_every_image_is_a_row_in_the_order_of_the_paths(image_folder, predictions, model):
    table = pq.read_table(predictions)
    assert table["file_name"].to_pylist() == paths_below(image_folder)
    assert table.column_names == [
        "file_name", "predicted_label", *(f"probability_{label}" for label in LABELS),
        "conformal_set_0.90", "conformal_set_0.95", "ood_score", "verdict", "error",
    ]  # fmt: skip
    assert table["error"].null_count == 1500
    assert not predictions.with_name(predictions.name + ".parts").exists()


def test_a_row_says_what_the_classifier_says(image_folder, predictions, model):
    rows = pq.read_table(predictions).slice(700, 20).to_pylist()
    found = Classifier.from_pretrained(model).predict([image_folder / row["file_name"] for row in rows])
    assert [row["predicted_label"] for row in rows] == found.labels
    assert [row["verdict"] for row in rows] == [verdict.kind for verdict in found.verdicts]
    assert np.allclose([row["ood_score"] for row in rows], found.ood_score, rtol=1e-5)
    for index, label in enumerate(LABELS):
        assert np.allclose(
            [row[f"probability_{label}"] for row in rows], found.probabilities[:, index], atol=1e-6
        )
        assert [label in row["conformal_set_0.90"] for row in rows] == found.sets["0.90"][:, index].tolist()


def test_an_unreadable_image_is_a_row_with_its_reason(model, tmp_path, capsys):
    folder = write_images(tmp_path / "images", 40)
    good = (folder / "0/0/00000.png").read_bytes()
    odd = {
        "cut.png": good[: len(good) // 2],
        "empty.jpg": b"",
        "text.tif": b"no image",
        "photo.HEIC": b"\0\0\0\x18ftypheic" + bytes(200),
        "scan.jxl": b"\xff\x0a" + bytes(200),
        "exported": b"\0\0\0\x18ftypheic" + bytes(200),  # an image by its first bytes
    }
    for name, data in odd.items():
        (folder / name).write_bytes(data)
    rows = {row["file_name"]: row for row in score_rows(folder, model, tmp_path / "out.parquet")}
    bad = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert len(rows) == 46 and set(bad) == set(odd)
    assert bad["empty.jpg"] == "The file is empty." and "cut off" in bad["cut.png"]
    for name in bad:
        assert {value for key, value in rows[name].items() if key not in ("file_name", "error")} == {None}
    assert "46 images" in (said := capsys.readouterr().out) and "6 unreadable" in said


def test_skipped_files_are_counted_by_reason(model, tmp_path, capsys):
    folder, elsewhere = write_images(tmp_path / "images", 7), write_images(tmp_path / "elsewhere", 2, seed=1)
    good = (folder / "0/0/00000.png").read_bytes()
    others = {"notes.txt": b"text", "Makefile": b"all:", ".hidden.png": good, "no_ending": good}
    for name, data in others.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("0.png", good)
    for name, target in {"gone.png": "nowhere.png", "2/up": "..", "outside": elsewhere}.items():
        (folder / name).symlink_to(target)
    rows = {row["file_name"]: row for row in score_rows(folder, model, tmp_path / "out.parquet")}
    said = capsys.readouterr().out.strip()
    assert said.endswith(
        "skipped: broken symlink: 1, hidden or system file: 1, in a zip (unpack it): 1, not a regular file: 1, "
        "not images (.txt): 1, not images (no suffix): 1, symlink out of the folder: 1, "
        "symlink to a folder that is read already: 1"
    )
    assert len(rows) == 8
    assert rows["no_ending"]["probability_beta"] == rows["0/0/00000.png"]["probability_beta"]
    followed = score_rows(folder, model, tmp_path / "all.parquet", "--follow_links")
    assert {row["file_name"] for row in followed} - set(rows) == {
        f"outside/{name}" for name in paths_below(elsewhere)
    }


@pytest.fixture(scope="module")
def dataset(image_folder, tmp_path_factory) -> Path:
    """A dataset folder of two splits, the second in two files, with many row groups and three bad images."""
    folder = tmp_path_factory.mktemp("dataset")
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=["odd", "even"]),
            "file_name": datasets.Value("string"),
        }
    )
    files = [image_folder / name for name in paths_below(image_folder)[:620]]
    (folder / "data").mkdir()
    shards = {
        "test-00000-of-00001": files[:20],
        "train-00000-of-00002": files[20:400],
        "train-00001-of-00002": files[400:],
    }
    for name, paths in shards.items():
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        if name.startswith("test"):
            images[7]["bytes"] = b"no image"
            images[8] = {"bytes": None, "path": str(image_folder / "0/0/00000.png")}  # outside of the dataset
            images[9]["bytes"] = b""
        labels = [(int(path.stem) + 1) % 2 for path in paths]
        columns = {"image": images, "label": labels, "file_name": [path.name for path in paths]}
        table = datasets.Dataset.from_dict(columns, features=features).data.table
        pq.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=50)
    return folder


def test_a_dataset_gives_every_row_of_every_split_with_its_label(image_folder, dataset, model, tmp_path):
    rows = score_rows(dataset, model, tmp_path / "all.parquet")
    names = [Path(name).name for name in paths_below(image_folder)[:620]]
    found = {
        split: [row["file_name"] for row in rows if row["split"] == split] for split in ("test", "train")
    }
    assert found == {"test": names[:20], "train": names[20:]} and len(rows) == 620
    assert all(row["label"] == ("even" if int(row["file_name"][:5]) % 2 == 0 else "odd") for row in rows)
    bad = {row["file_name"]: row["error"] for row in rows if row["error"]}
    assert list(bad) == names[7:10] and bad[names[9]] == "The file is empty."
    test = [row for row in rows if row["split"] == "test"]
    assert score_rows(dataset, model, tmp_path / "test.parquet", "--split", "test") == test


def test_a_dataset_and_a_model_of_the_hub_give_the_same_as_their_folders(dataset, model, owner, tmp_path):
    hub = HfApi()
    for repo, folder, kind in (("scored-set", dataset, "dataset"), ("scorer", model, "model")):
        hub.create_repo(f"{owner}/{repo}", repo_type=kind, exist_ok=True)
        hub.upload_folder(repo_id=f"{owner}/{repo}", folder_path=folder, repo_type=kind)
    assert score(dataset, model, tmp_path / "here.parquet") == 0
    assert score(f"{owner}/scored-set", f"{owner}/scorer", tmp_path / "hub.parquet") == 0
    assert pq.read_table(tmp_path / "hub.parquet").equals(pq.read_table(tmp_path / "here.parquet"))


def test_a_repo_of_single_files_is_read_file_by_file(image_folder, model, owner, tmp_path):
    files = [image_folder / name for name in paths_below(image_folder)[:30]]
    for path in files:
        target = tmp_path / "images" / "train" / ("odd" if int(path.stem) % 2 else "even") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    HfApi().create_repo(f"{owner}/loose", repo_type="dataset")
    HfApi().upload_folder(repo_id=f"{owner}/loose", folder_path=tmp_path / "images", repo_type="dataset")
    rows = score_rows(f"{owner}/loose", model, tmp_path / "out.parquet")
    assert sorted(row["file_name"] for row in rows) == sorted(path.name for path in files)
    assert not any(row["error"] for row in rows)
    assert all(row["label"] == ("odd" if int(row["file_name"][:5]) % 2 else "even") for row in rows)


def test_a_repo_in_another_form_is_streamed(image_folder, model, owner, tmp_path):
    names = paths_below(image_folder)[:30]
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in names:
            archive.add(image_folder / name, Path(name).name)
            label = tarfile.TarInfo(f"{Path(name).stem}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"1"))
    HfApi().create_repo(f"{owner}/tarred", repo_type="dataset")
    HfApi().upload_file(
        repo_id=f"{owner}/tarred", repo_type="dataset",
        path_or_fileobj=tmp_path / "train.tar", path_in_repo="train.tar",
    )  # fmt: skip
    columns = ["--image_column", "png", "--label_column", "cls"]
    rows = score_rows(f"{owner}/tarred", model, tmp_path / "out.parquet", *columns)
    assert [row["file_name"] for row in rows] == [Path(name).name for name in names]
    assert {(row["split"], row["label"], row["error"]) for row in rows} == {("train", "1", None)}


def test_what_is_wrong_with_the_input_is_one_sentence(dataset, model, owner, tmp_path, capsys):
    empty, out = tmp_path / "empty", tmp_path / "out.parquet"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    images = write_images(tmp_path / "images", 2)
    cases = [
        ("has no images", (empty, model, out)),
        ("is neither a folder nor a repo id", (tmp_path / "nowhere", model, out)),
        ("there is no dataset repo", (f"{owner}/nothing-here", model, out)),
        ("is a file", (empty / "notes.txt", model, out)),
        ("model repo", (images, f"{owner}/nothing-here", out)),
        ("has no config.json", (images, empty, out)),
        ("is a run folder", (images, run, out)),
        ("has no onnx/model.onnx", (images, model, out, "--backend", "onnx")),
        ("is a directory: pass a file", (images, model, tmp_path)),
        *(("is a directory: pass a file", (images, model, folder)) for folder in (".", "..", "/", "")),
        ("is inside the folder of images", (images, model, images / "out.parquet")),
        ("cannot be written", (images, model, empty / "notes.txt" / "out.parquet")),
        ("has no splits", (images, model, out, "--split", "test")),
        ("has no split 'dev' (found: ", (dataset, model, out, "--split", "dev")),
        ("pass --image_column image", (dataset, model, out, "--image_column", "picture")),
    ]
    for sentence, arguments in cases:
        assert sentence in refusal(capsys, *arguments), arguments
        assert not list(tmp_path.rglob("*.parts")), "a refused run leaves nothing behind"


def test_a_dataset_of_several_configurations_asks_for_one(dataset, model, tmp_path, capsys):
    several = shutil.copytree(dataset, tmp_path / "several")
    configs = "".join(
        f"- {{config_name: {name}, data_files: data/{name}*.parquet}}\n" for name in ("test", "train")
    )
    (several / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert "pass --config with one of test, train" in refusal(
        capsys, several, model, tmp_path / "out.parquet"
    )
    assert len(score_rows(several, model, tmp_path / "out.parquet", "--config", "test")) == 20


def test_predictions_are_never_replaced_unasked(predictions, image_folder, model, dataset, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    out.write_bytes(predictions.read_bytes())
    assert score(image_folder, model, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    other = write_model(tmp_path / "other", seed=1)
    assert "with another model" in refusal(capsys, image_folder, other, out)
    assert out.read_bytes() == predictions.read_bytes()
    assert len(score_rows(dataset, model, out, "--split", "test", "--overwrite")) == 20
    assert sorted(tmp_path.iterdir()) == [tmp_path / "other", out]


def test_an_image_that_changed_under_its_name_is_scored_again(model, tmp_path, capsys):
    images, out = write_images(tmp_path / "images", 3), tmp_path / "out.parquet"
    assert score(images, model, out) == 0
    assert score(images, model, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    (images / "0/0/00000.png").write_bytes((images / "1/1/00001.png").read_bytes())
    assert "with another listing" in refusal(capsys, images, model, out)
    rows = score_rows(images, model, out, "--overwrite")
    assert rows[0]["probability_beta"] == rows[1]["probability_beta"]


def test_a_full_disk_is_said_and_what_is_finished_is_kept(
    image_folder, predictions, model, tmp_path, capsys, monkeypatch
):
    out, syncs, sync = tmp_path / "out.parquet", itertools.count(), os.fsync

    def filling(descriptor):
        if next(syncs) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(score_output.os, "fsync", filling)
        error = refusal(capsys, image_folder, model, out)
    assert "the disk is full" in error and "rerun to resume" in error
    assert "with another model" in refusal(capsys, image_folder, write_model(tmp_path / "other", seed=1), out)
    assert score(image_folder, model, out) == 0
    assert "resuming: 3 of 6" in capsys.readouterr().out
    assert out.read_bytes() == predictions.read_bytes()


def test_two_runs_do_not_write_one_file(image_folder, model, tmp_path, capsys):
    first = score_output.Shards(tmp_path / "out.parquet")
    first.claim()
    assert "another run is writing" in refusal(capsys, image_folder, model, tmp_path / "out.parquet")


def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_one_left_alone(
    image_folder, predictions, model, tmp_path, capsys
):
    out = tmp_path / "predictions.parquet"
    arguments = arguments_of(image_folder, model, out)
    left = kill_midway(MODULE, arguments, tmp_path / "predictions.parquet.parts")
    assert 1 <= left < 6 and not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/part-*")}
    assert main(["score", *arguments]) == 0
    assert f"resuming: {len(kept)} of 6 shards are written" in capsys.readouterr().out
    assert out.read_bytes() == predictions.read_bytes()


def test_two_processes_give_the_bytes_of_one(image_folder, predictions, model, tmp_path):
    out = tmp_path / "predictions.parquet"
    command = [sys.executable, *TWO, *arguments_of(image_folder, model, out)]
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    assert done.stdout.count("1,500 images") == 1
    assert out.read_bytes() == predictions.read_bytes()
