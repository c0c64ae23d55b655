"""Whole runs on drawn cells: what they leave behind, what they refuse, and what an interruption does not change."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import evaluate
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import train_accelerate
from tests.training.small import LAUNCH_TWO, RESULTS, arguments, refusal, train
from training.checkpoint import Progress
from training.evaluation import score
from training.schedule import Schedule

SCRIPT = train_accelerate.__file__
METRIC = Path(SCRIPT).parent / "hub_model" / "metrics" / "cell_classification"
EVERY_UPDATE = "--checkpoint_minutes 1e-6 --keep_checkpoints 99"


def results(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in RESULTS]


def logits(run: Path) -> list[dict]:
    return [pq.read_table(run / f"logits_{split}.parquet").to_pydict() for split in ("validation", "test")]


def history_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(drawn_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(drawn_dataset, folder) == 0
    return folder


def test_a_run_folder_holds_what_the_contract_names(run, drawn_dataset):
    history = history_of(run)
    assert [entry["epoch"] for entry in history] == [0, 1]
    names = {
        f"{split}_{name}" for split in ("train", "validation") for name in ("loss", "accuracy", "macro_f1")
    }
    assert names | {"epoch", "learning_rate", "image_size"} == set(history[0])
    for split in ("validation", "test"):
        table = pq.read_table(run / f"logits_{split}.parquet")
        assert table.column_names == ["file_name", "label", "logits"]
        assert len(table["logits"][0].as_py()) == 7
    facts = json.loads((run / "environment.json").read_text())
    assert facts["dataset"]["id"] == str(drawn_dataset)
    assert set(facts["dataset"]["splits"]) == {"train", "validation", "test"}
    assert json.loads((run / "config.json").read_text())["id2label"]["0"] == "BLA"
    assert timm.create_model(f"local-dir:{run}", pretrained=True).num_classes == 7


def test_the_stored_logits_are_those_of_the_stored_weights(run, drawn_dataset, tmp_path):
    again, rounded, after = (tmp_path / name for name in ("again", "rounded", "after"))
    assert train(drawn_dataset, again, "--init_from", run, epochs=0) == 0
    assert logits(again) == logits(run)
    more = "--save_dtype float16 --reestimate_batch_norm"
    assert train(drawn_dataset, rounded, more, "--init_from", run, epochs=0) == 0
    size, full = ((folder / "model.safetensors").stat().st_size for folder in (rounded, run))
    assert size < 0.6 * full
    assert train(drawn_dataset, after, "--init_from", rounded, epochs=0) == 0
    assert logits(after) == logits(rounded) != logits(run)


def test_a_stream_and_a_dataset_from_the_hub_train_too(drawn_repo, tmp_path):
    assert train(drawn_repo, tmp_path / "run", "--data", "stream", "--shuffle_buffer", "50") == 0
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["dataset"]["id"] == drawn_repo and len(facts["dataset"]["revision"]) == 40


def test_a_teacher_a_size_schedule_and_accumulation_work_together(run, drawn_dataset, tmp_path):
    more = f"--teacher {run} --feature_weight 1 --gradient_accumulation_steps 3 --mixup 1"
    sizes = "--size_schedule 0:32,0.5:48 --image_size 48"
    assert train(drawn_dataset, tmp_path / "run", more, sizes, epochs=3) == 0
    assert [entry["image_size"] for entry in history_of(tmp_path / "run")] == [32, 32, 48]
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["model"]["teachers"] == [{"source": str(run), "architecture": "test_efficientnet"}]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]


def test_views_of_cached_teacher_logits_come_again_and_a_resumed_run_has_the_same_bytes(
    run, drawn_dataset, tmp_path
):
    more = f"--teacher {run} --teacher_cache 2", EVERY_UPDATE
    assert train(drawn_dataset, tmp_path / "run", *more, epochs=4) == 0
    whole = results(tmp_path / "run")
    assert len(list((tmp_path / "run" / "teacher_cache").iterdir())) == 2
    for later in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[9:]:
        shutil.rmtree(later)
    shutil.rmtree(tmp_path / "run" / "teacher_cache")  # is recomputed
    assert train(drawn_dataset, tmp_path / "run", *more, "--resume", epochs=4) == 0
    assert results(tmp_path / "run") == whole


def test_figures_are_given_by_source_where_the_dataset_has_the_column(drawn_dataset, tmp_path, capsys):
    for split, table in datasets.load_dataset(str(drawn_dataset)).items():
        sources = [("bone_marrow", "blood")[i % 2] for i in range(len(table))]
        table.add_column("source", sources).to_parquet(tmp_path / "data" / f"{split}.parquet")
    assert train(tmp_path / "data", tmp_path / "run", epochs=0) == 0
    said = capsys.readouterr().out
    assert "bone_marrow: accuracy" in said and "blood: accuracy" in said and "images 14" in said
    table = pq.read_table(tmp_path / "run" / "logits_test.parquet")
    assert table["source"].to_pylist()[:3] == ["bone_marrow", "blood", "bone_marrow"]


def test_recomputed_batch_norm_is_in_the_stored_weights_and_logits_once_and_for_all(
    run, drawn_dataset, tmp_path, capsys
):
    again, scored = tmp_path / "again", tmp_path / "scored"
    shutil.copytree(run, again)
    before = load_file(run / "model.safetensors")
    flag = "--reestimate_batch_norm"
    assert train(drawn_dataset, again, "--resume", flag) == 0
    after = load_file(again / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running_" in name or "num_batches" in name for name in changed)
    assert train(drawn_dataset, scored, "--init_from", again, epochs=0) == 0
    assert logits(scored) == logits(again)
    weights = (again / "model.safetensors").read_bytes()
    assert train(drawn_dataset, again, "--resume", flag) == 0
    assert (again / "model.safetensors").read_bytes() == weights
    assert flag in refusal(capsys, drawn_dataset, again, "--resume")


def test_options_for_small_and_unbalanced_data_train(run, drawn_dataset, tmp_path):
    more = f"--init_from {run} --class_weights balanced --ema_decay 0 --cutmix 1"
    assert train(drawn_dataset, tmp_path / "frozen", more, "--freeze_backbone", epochs=1) == 0
    assert train(drawn_dataset, tmp_path / "layers", more, "--layer_decay 0.7", epochs=1) == 0


def test_the_clock_or_the_updates_end_a_run_whatever_is_first():
    options = SimpleNamespace(epochs=10, max_minutes=2, warmup=0.1, size_schedule=[(0.0, 32), (0.5, 48)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    progress = Progress()
    schedule = Schedule(options, Accelerator(cpu=True), optimizer, progress, updates_per_epoch=5)
    seen = []
    for epoch, update, seconds in [
        (0, 0, 0),
        (1, 4, 12),
        (1, 5, 60),
        (2, 40, 60),
        (2, 40, 120),
        (10, 50, 60),
    ]:
        progress.epoch, progress.update, progress.seconds = epoch, update, seconds
        seen.append((schedule.fraction, schedule.image_size, schedule.finished))
    assert seen[:3] == [(0, 32, False), (0.1, 32, False), (0.5, 48, False)]
    assert seen[3:] == [(0.8, 48, False), (1, 48, True), (1, 48, True)]
    assert schedule.learning_rate == pytest.approx(0)
    progress.epoch, progress.seconds, progress.step = 2, 120, 3
    assert not schedule.finished, "an epoch that was broken off is still to be evaluated"
    schedule.count_update()
    assert schedule.learning_rate == pytest.approx(0)


def test_what_is_no_run_is_not_overwritten_and_a_tracker_that_is_missing_is_named(
    drawn_dataset, tmp_path, capsys
):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "does not contain a run" in refusal(capsys, drawn_dataset, tmp_path, "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(SystemExit):
        train(drawn_dataset, tmp_path / "run", "--log_with wandb")
    assert "pip install wandb" in capsys.readouterr().err


def test_what_is_overwritten_stays_until_nothing_else_can_be_wrong(run, drawn_dataset, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    link, before = tmp_path / "link", (run / "model.safetensors").read_bytes()
    assert "cannot be reached" in refusal(capsys, tmp_path / "nowhere", link, "--overwrite")
    assert "did you mean" in refusal(capsys, drawn_dataset, link, "--overwrite --model resnet10")
    for flag in ("--init_from", "--teacher"):
        text = refusal(capsys, drawn_dataset, link, "--overwrite", flag, tmp_path / "run")
        assert "which --overwrite deletes" in text
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert train(drawn_dataset, link, "--overwrite --seed 1", epochs=1) == 0
    assert link.is_symlink() and (tmp_path / "run" / "model.safetensors").read_bytes() != before


def test_an_output_that_cannot_be_a_folder_is_one_sentence(drawn_dataset, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "is a file" in refusal(capsys, drawn_dataset, tmp_path / "file")
    assert "cannot be written" in refusal(capsys, drawn_dataset, tmp_path / "file" / "run")
    assert "cannot be written" in refusal(capsys, drawn_dataset, tmp_path / ("x" * 300))


def test_a_run_does_not_go_on_with_other_data_or_options_that_cannot_be_read(
    run, drawn_dataset, tmp_path, capsys
):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(drawn_dataset, tmp_path / "dataset")
    recorded = tmp_path / "run" / "args.json"
    recorded.write_text(recorded.read_text().replace(str(drawn_dataset), str(tmp_path / "dataset")))
    assert train(tmp_path / "dataset", tmp_path / "run", "--resume") == 0
    (tmp_path / "dataset" / "splits.csv").write_text("changed")
    assert "has changed since" in refusal(capsys, tmp_path / "dataset", tmp_path / "run", "--resume")
    for damaged in ('{"x', "[1]"):
        recorded.write_text(damaged)
        assert "is damaged" in refusal(capsys, drawn_dataset, tmp_path / "run", "--resume")


def test_a_folder_in_use_is_neither_mixed_nor_lost(run, drawn_dataset, capsys):
    before = (run / "history.jsonl").read_bytes()
    assert "is not empty" in refusal(capsys, drawn_dataset, run)
    said = refusal(capsys, drawn_dataset, run, "--resume --learning_rate 0.1")
    assert "--learning_rate (was 0.002, now 0.1)" in said
    assert (run / "history.jsonl").read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run(drawn_dataset, tmp_path, capsys):
    wild = "--learning_rate 1e30 --clip_grad 1e30"
    assert "--learning_rate" in refusal(capsys, drawn_dataset, tmp_path / "run", wild, epochs=5)


def test_a_full_disk_is_said(drawn_dataset, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.Accelerator.save_state", full)
    assert "No space left on device" in refusal(capsys, drawn_dataset, tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, drawn_dataset, tmp_path, capsys):
    resumed = shutil.copytree(run, tmp_path / "run")
    newest, before = sorted((resumed / "checkpoints").glob("step-*"), reverse=True)
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert train(drawn_dataset, resumed, "--resume") == 0
    said = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged" in said and f"resuming from {before.name}" in said
    assert results(resumed) == results(run)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(run, drawn_dataset, tmp_path):
    assert train(drawn_dataset, tmp_path / "again") == 0
    assert train(drawn_dataset, tmp_path / "other", "--seed 1") == 0
    assert results(tmp_path / "again") == results(run)
    assert not any(map(bytes.__eq__, results(tmp_path / "other"), results(run)))


@pytest.mark.parametrize("data", ["memory", "stream"])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_bytes(
    data, drawn_dataset, tmp_path, capsys
):
    more = f"--data {data} --shuffle_buffer 50 --gradient_accumulation_steps 2"
    assert train(drawn_dataset, tmp_path / "run", more, EVERY_UPDATE) == 0
    whole = results(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    chosen = checkpoints[len(checkpoints) // 2 + 1]  # of the second epoch
    assert not chosen.name.endswith("-00000000")
    for later in checkpoints[checkpoints.index(chosen) + 1 :]:
        shutil.rmtree(later)
    assert train(drawn_dataset, tmp_path / "run", more, "--resume") == 0
    assert f"resuming from {chosen.name}" in capsys.readouterr().out
    assert results(tmp_path / "run") == whole


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_ends_cleanly(told, drawn_dataset, tmp_path):
    command = [sys.executable, SCRIPT, *arguments(drawn_dataset, tmp_path / "run", "--resume", epochs=1000)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            process.send_signal(told)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert "rerun with --resume" in rest
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_two_processes_score_the_same_weights_to_the_same_bits(run, drawn_dataset, tmp_path):
    given = arguments(drawn_dataset, tmp_path / "two", "--init_from", run, epochs=0)
    subprocess.run([sys.executable, *LAUNCH_TWO, SCRIPT, *given], check=True)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["hardware"]["processes"] == 2
    assert logits(tmp_path / "two") == logits(run)


def test_the_figures_are_those_of_the_metric_also_where_a_class_is_missing():
    logits = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    logits[:, 3] -= 9  # a class that neither occurs nor is predicted
    labels = np.arange(40) % 3
    metric = evaluate.load(str(METRIC)).compute(prediction_scores=logits, references=labels)
    found = score(logits, labels)
    assert found["images"] == 40
    for ours, theirs in {"loss": "log_loss", "accuracy": "accuracy", "macro_f1": "macro_f1"}.items():
        assert found[ours] == pytest.approx(metric[theirs], abs=1e-12)


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "evaluate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "datasets" else find_spec(name, *more)
sys.meta_path.insert(0, Missing())
from train_accelerate import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_machine_without_datasets_trains_on_packed_images_to_the_same_bytes(run, drawn_dataset, tmp_path):
    command = [sys.executable, "-c", WITHOUT, *arguments(drawn_dataset, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run") == results(run)
    command = [sys.executable, "-c", WITHOUT, *arguments("owner/name", tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install datasets" in done.stderr and "Traceback" not in done.stderr
