"""Complete runs on synthetic cells: results, errors, and resumption."""

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
from tests.training.small import LAUNCH_TWO, arguments, refusal, results, train
from training.checkpoint import Progress
from training.evaluation import score
from training.schedule import Schedule

SCRIPT = train_accelerate.__file__
METRIC = Path(SCRIPT).parent / "hub_model" / "metrics" / "cell_classification"
EVERY_UPDATE = "--checkpoint_minutes 1e-6 --keep_checkpoints 99"


def logits(run: Path) -> list[dict]:
    return [pq.read_table(run / f"logits_{split}.parquet").to_pydict() for split in ("validation", "test")]


def history_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(drawn_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(drawn_dataset, folder) == 0
    return folder


def test_a_run_folder_has_the_documented_contents(run, drawn_dataset):
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


def test_the_saved_logits_are_those_of_the_saved_weights(run, drawn_dataset, tmp_path):
    again, rounded, after = (tmp_path / name for name in ("again", "rounded", "after"))
    assert train(drawn_dataset, again, "--init_from", run, epochs=0) == 0
    assert logits(again) == logits(run)
    more = "--save_dtype float16 --reestimate_batch_norm"
    assert train(drawn_dataset, rounded, more, "--init_from", run, epochs=0) == 0
    size, full = ((folder / "model.safetensors").stat().st_size for folder in (rounded, run))
    assert size < 0.6 * full
    assert train(drawn_dataset, after, "--init_from", rounded, epochs=0) == 0
    assert logits(after) == logits(rounded) != logits(run)


def test_a_dataset_is_streamed_from_the_hub(drawn_repo, tmp_path):
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


def test_a_resumed_run_with_cached_teacher_logits_is_bit_identical(run, drawn_dataset, tmp_path):
    more = f"--teacher {run} --teacher_cache 2", EVERY_UPDATE
    assert train(drawn_dataset, tmp_path / "run", *more, epochs=4) == 0
    uninterrupted = results(tmp_path / "run")
    assert len(list((tmp_path / "run" / "teacher_cache").iterdir())) == 2
    for later in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[9:]:
        shutil.rmtree(later)
    shutil.rmtree(tmp_path / "run" / "teacher_cache")  # is recomputed
    assert train(drawn_dataset, tmp_path / "run", *more, "--resume", epochs=4) == 0
    assert results(tmp_path / "run") == uninterrupted


def test_metrics_are_reported_by_source_if_the_dataset_has_the_column(drawn_dataset, tmp_path, capsys):
    for split, table in datasets.load_dataset(str(drawn_dataset)).items():
        sources = [("bone_marrow", "blood")[i % 2] for i in range(len(table))]
        table.add_column("source", sources).to_parquet(tmp_path / "data" / f"{split}.parquet")
    assert train(tmp_path / "data", tmp_path / "run", epochs=0) == 0
    message = capsys.readouterr().out
    assert "bone_marrow: accuracy" in message and "blood: accuracy" in message and "images 14" in message
    table = pq.read_table(tmp_path / "run" / "logits_test.parquet")
    assert table["source"].to_pylist()[:3] == ["bone_marrow", "blood", "bone_marrow"]


def test_reestimated_batch_norm_is_saved_and_cannot_be_undone(run, drawn_dataset, tmp_path, capsys):
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


def test_a_run_ends_by_clock_or_updates_whichever_comes_first():
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


def test_only_a_run_is_overwritten_and_a_missing_tracker_is_named(drawn_dataset, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "does not contain a run" in refusal(capsys, drawn_dataset, tmp_path, "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(SystemExit):
        train(drawn_dataset, tmp_path / "run", "--log_with wandb")
    assert "pip install wandb" in capsys.readouterr().err


def test_a_run_is_overwritten_only_after_all_other_checks(run, drawn_dataset, tmp_path, capsys):
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


def test_an_output_folder_that_cannot_be_created_is_one_error_message(drawn_dataset, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "is a file" in refusal(capsys, drawn_dataset, tmp_path / "file")
    assert "cannot be written" in refusal(capsys, drawn_dataset, tmp_path / "file" / "run")
    assert "cannot be written" in refusal(capsys, drawn_dataset, tmp_path / ("x" * 300))


def test_a_run_is_not_resumed_with_changed_data_or_damaged_args(run, drawn_dataset, tmp_path, capsys):
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


def test_an_existing_run_is_not_overwritten_or_mixed_with_another(run, drawn_dataset, capsys):
    before = (run / "history.jsonl").read_bytes()
    assert "is not empty" in refusal(capsys, drawn_dataset, run)
    message = refusal(capsys, drawn_dataset, run, "--resume --learning_rate 0.1")
    assert "--learning_rate (was 0.002, now 0.1)" in message
    assert (run / "history.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(drawn_dataset, tmp_path, capsys):
    wild = "--learning_rate 1e30 --clip_grad 1e30"
    assert "--learning_rate" in refusal(capsys, drawn_dataset, tmp_path / "run", wild, epochs=5)


def test_a_full_disk_is_one_error_message(drawn_dataset, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.Accelerator.save_state", full)
    assert "No space left on device" in refusal(capsys, drawn_dataset, tmp_path / "run")


def test_a_damaged_checkpoint_is_skipped(run, drawn_dataset, tmp_path, capsys):
    resumed = shutil.copytree(run, tmp_path / "run")
    newest, before = sorted((resumed / "checkpoints").glob("step-*"), reverse=True)
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert train(drawn_dataset, resumed, "--resume") == 0
    message = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged" in message and f"resuming from {before.name}" in message
    assert results(resumed) == results(run)


def test_a_run_depends_on_the_seed_only(run, drawn_dataset, tmp_path):
    assert train(drawn_dataset, tmp_path / "again") == 0
    assert train(drawn_dataset, tmp_path / "other", "--seed 1") == 0
    assert results(tmp_path / "again") == results(run)
    assert not any(map(bytes.__eq__, results(tmp_path / "other"), results(run)))


@pytest.mark.parametrize("data", ["memory", "stream"])
def test_a_run_resumed_in_the_middle_of_an_epoch_is_bit_identical(data, drawn_dataset, tmp_path, capsys):
    more = f"--data {data} --shuffle_buffer 50 --gradient_accumulation_steps 2"
    assert train(drawn_dataset, tmp_path / "run", more, EVERY_UPDATE) == 0
    uninterrupted = results(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    chosen = checkpoints[len(checkpoints) // 2 + 1]  # of the second epoch
    assert not chosen.name.endswith("-00000000")
    for later in checkpoints[checkpoints.index(chosen) + 1 :]:
        shutil.rmtree(later)
    assert train(drawn_dataset, tmp_path / "run", more, "--resume") == 0
    assert f"resuming from {chosen.name}" in capsys.readouterr().out
    assert results(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_exits_cleanly(number, drawn_dataset, tmp_path):
    command = [sys.executable, SCRIPT, *arguments(drawn_dataset, tmp_path / "run", "--resume", epochs=1000)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert "rerun with --resume" in rest
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_two_processes_compute_bit_identical_logits(run, drawn_dataset, tmp_path):
    given = arguments(drawn_dataset, tmp_path / "two", "--init_from", run, epochs=0)
    subprocess.run([sys.executable, *LAUNCH_TWO, SCRIPT, *given], check=True)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["hardware"]["processes"] == 2
    assert logits(tmp_path / "two") == logits(run)


def test_scores_equal_the_evaluate_metric_even_if_a_class_is_missing():
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


def test_training_without_the_datasets_package_is_bit_identical(run, drawn_dataset, tmp_path):
    command = [sys.executable, "-c", WITHOUT, *arguments(drawn_dataset, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run") == results(run)
    command = [sys.executable, "-c", WITHOUT, *arguments("owner/name", tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install datasets" in done.stderr and "Traceback" not in done.stderr
