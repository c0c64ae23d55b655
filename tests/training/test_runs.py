"""Whole runs on drawn cells: what they leave behind, what they refuse, and what a kill does not change."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

import train_accelerate
from train_accelerate import main
from training.evaluation import macro_f1

TINY = ["--no-pretrained", "--model", "resnet10t", "--image_size", "32", "--batch_size", "16"]
SCRIPT = str(Path(train_accelerate.__file__))


def train(dataset, output, *more, epochs=2) -> int:
    return main(
        ["--dataset", str(dataset), "--output_dir", str(output), *TINY, "--epochs", str(epochs), *more]
    )


def refusal(capsys, *arguments, **given) -> str:
    assert train(*arguments, **given) == 1
    text = capsys.readouterr().err
    assert text.count("error: ") == 1 and "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def run(drawn_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(drawn_dataset, folder) == 0
    return folder


def test_a_run_folder_holds_what_the_contract_names(run, drawn_dataset):
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [0, 1]
    names = {
        f"{split}_{figure}"
        for split in ("train", "validation")
        for figure in ("loss", "accuracy", "macro_f1")
    }
    assert names | {"epoch", "learning_rate", "image_size"} == set(history[0])
    for split in ("validation", "test"):
        table = pq.read_table(run / f"logits_{split}.parquet")
        assert table.column_names == ["file_name", "label", "logits"]
        assert len(table["logits"][0].as_py()) == 7
    facts = json.loads((run / "environment.json").read_text())
    assert facts["dataset"]["id"] == str(drawn_dataset)
    assert set(facts["dataset"]["splits"]) == {"train", "validation", "test"}
    assert json.loads((run / "config.json").read_text())["label_names"][0] == "BLA"
    assert (run / "curves.png").stat().st_size > 10_000
    assert timm.create_model(f"local-dir:{run}", pretrained=True).num_classes == 7


def test_the_stored_logits_are_those_of_the_stored_weights(run, drawn_dataset, tmp_path):
    again = tmp_path / "again"
    assert train(drawn_dataset, again, "--init_from", str(run), epochs=0) == 0
    for split in ("validation", "test"):
        assert pq.read_table(run / f"logits_{split}.parquet").equals(
            pq.read_table(again / f"logits_{split}.parquet")
        )


def test_a_stream_and_a_data_set_from_the_hub_train_too(drawn_repo, tmp_path):
    assert train(drawn_repo, tmp_path / "run", "--data", "stream", "--shuffle_buffer", "50") == 0
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["dataset"]["id"] == drawn_repo and len(facts["dataset"]["revision"]) == 40


def test_a_teacher_a_size_schedule_and_accumulation_work_together(run, drawn_dataset, tmp_path):
    more = [
        "--teacher",
        str(run),
        "--feature_weight",
        "1",
        "--gradient_accumulation_steps",
        "3",
        "--mixup",
        "1",
    ]
    arguments = ["--dataset", str(drawn_dataset), "--output_dir", str(tmp_path / "run"), "--no-pretrained"]
    arguments += ["--model", "resnet10t", "--epochs", "3", "--size_schedule", "0:32,0.5:48", *more]
    assert main(arguments) == 0
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [entry["image_size"] for entry in history] == [32, 32, 48]
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["model"]["teachers"] == [{"source": str(run), "architecture": "resnet10t"}]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [
        3,
        48,
        48,
    ]


def test_batch_norm_taken_anew_is_in_the_stored_weights_and_logits_once_and_for_all(
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
    assert train(drawn_dataset, scored, "--init_from", str(again), epochs=0) == 0
    logits = [pq.read_table(folder / "logits_validation.parquet") for folder in (again, scored)]
    assert logits[0].equals(logits[1])
    weights = (again / "model.safetensors").read_bytes()
    assert train(drawn_dataset, again, "--resume", flag) == 0
    assert (again / "model.safetensors").read_bytes() == weights
    assert flag in refusal(capsys, drawn_dataset, again, "--resume")


def test_options_for_small_and_unbalanced_data_train(run, drawn_dataset, tmp_path):
    more = ["--init_from", str(run), "--class_weights", "balanced", "--ema_decay", "0", "--cutmix", "1"]
    assert train(drawn_dataset, tmp_path / "frozen", *more, "--freeze_backbone", epochs=1) == 0
    assert train(drawn_dataset, tmp_path / "layers", *more, "--layer_decay", "0.7", epochs=1) == 0


def test_the_clock_ends_a_run_with_the_learning_rate_at_zero(drawn_dataset, tmp_path):
    assert train(drawn_dataset, tmp_path / "run", "--max_minutes", "0.4", epochs=10_000) == 0
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["learning_rate"] < 1e-5


def test_what_is_no_run_is_not_overwritten_and_a_tracker_that_is_missing_is_named(
    drawn_dataset, tmp_path, capsys
):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "holds no run" in refusal(capsys, drawn_dataset, tmp_path, "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(SystemExit):
        train(drawn_dataset, tmp_path / "run", "--log_with", "wandb")
    assert "pip install wandb" in capsys.readouterr().err


def test_what_is_overwritten_stays_until_nothing_else_can_be_wrong(run, drawn_dataset, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    link, before = tmp_path / "link", (run / "model.safetensors").read_bytes()
    assert "cannot be reached" in refusal(capsys, tmp_path / "nowhere", link, "--overwrite")
    assert "did you mean" in refusal(capsys, drawn_dataset, link, "--overwrite", "--model", "resnet10")
    for flag in ("--init_from", "--teacher"):
        text = refusal(capsys, drawn_dataset, link, "--overwrite", flag, str(tmp_path / "run"))
        assert "which --overwrite deletes" in text
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert train(drawn_dataset, link, "--overwrite", "--seed", "1", epochs=1) == 0
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
    assert "--learning_rate (was 0.002, now 0.1)" in refusal(
        capsys, drawn_dataset, run, "--resume", "--learning_rate", "0.1"
    )
    assert (run / "history.jsonl").read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run(drawn_dataset, tmp_path, capsys):
    text = refusal(
        capsys, drawn_dataset, tmp_path / "run", "--learning_rate", "1e30", "--clip_grad", "1e30", epochs=5
    )
    assert "--learning_rate" in text


def test_a_full_disk_is_said_and_leaves_the_earlier_checkpoint(
    run, drawn_dataset, tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.Accelerator.save_state", full)
    assert "No space left on device" in refusal(capsys, drawn_dataset, tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, drawn_dataset, capsys):
    newest, before = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    history = (run / "history.jsonl").read_bytes()
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert train(drawn_dataset, run, "--resume") == 0
    said = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged" in said and f"resuming from {before.name}" in said
    assert (run / "history.jsonl").read_bytes() == history


def command(dataset, output, *more) -> list[str]:
    return [sys.executable, SCRIPT, "--dataset", str(dataset), "--output_dir", str(output), *TINY, *more]


def test_a_run_killed_at_random_moments_ends_like_one_left_alone(run, drawn_dataset, tmp_path):
    """SIGKILL twice, whatever is going on; then go on to the end."""
    arguments = command(
        drawn_dataset, tmp_path / "run", "--epochs", "2", "--resume", "--checkpoint_minutes", "0.002"
    )
    chance = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run" / "checkpoints").glob("*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 3))
        process.kill()
        process.wait()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    for name in ("history.jsonl", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_ends_cleanly(told, drawn_dataset, tmp_path):
    arguments = command(drawn_dataset, tmp_path / "run", "--epochs", "1000", "--resume")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            process.send_signal(told)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert "--resume goes on" in rest
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_two_processes_score_the_same_weights_to_the_same_bits(run, drawn_dataset, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    more = ["--init_from", str(run), "--epochs", "0"]
    two = launch + command(drawn_dataset, tmp_path / "two", *more)[1:]
    subprocess.run(two, check=True, timeout=280)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["hardware"]["processes"] == 2
    for split in ("validation", "test"):
        assert pq.read_table(run / f"logits_{split}.parquet").equals(
            pq.read_table(tmp_path / "two" / f"logits_{split}.parquet")
        )


def test_macro_f1_of_a_confusion_matrix_is_the_metrics_own():
    confusion = torch.tensor([[5, 1, 0], [2, 3, 1], [0, 0, 4]])
    assert macro_f1(confusion) == pytest.approx((10 / 13 + 6 / 10 + 8 / 9) / 3)
