"""The full pipeline, from images to a dataset repo, a model repo and a prediction: `make run [DATA=folder]`.

Each stage is a separate command, printed before it runs. They talk to the embedded Hub (`local_hub`), which needs no
account and no network; `make publish` publishes to huggingface.co.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from dataset_script.arguments import positive, whole_number
from local_hub import HubError
from runs.folders import (
    OWNER,
    RELEASE,
    ROOT,
    TEST_NAMES,
    build,
    build_dataset,
    check_folders,
    draw,
    embedded_hub,
    python,
    run,
)


def main(argv: list[str] | None = None) -> int:
    """Run every stage; stop at the first that fails, with its exit code."""
    parser = argparse.ArgumentParser(prog="python -m runs.pipeline", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--data", type=Path, help="folder of images, one folder per class (default: synthetic cells)")
    option("--out", type=Path, default=Path(".run"), help="output folder (default: %(default)s)")
    option("--minutes", type=positive, default=4.0, help="minutes of training (default: %(default)s)")
    per_class = "synthetic cells per class, without --data (default: %(default)s)"
    option("--per_class", type=whole_number(10), default=60, help=per_class)
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    try:
        check_folders(arguments.data, arguments.out)
        with embedded_hub(arguments.out) as hub:
            os.environ.update(hub.environment)
            run_stages(arguments.data, arguments.out, arguments.minutes, arguments.per_class)
    except (HubError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: stopped at: {shlex.join(map(str, error.cmd))}", file=sys.stderr)
        return error.returncode
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    summarize(arguments.out, (time.monotonic() - started) / 60)
    return 0


def run_stages(raw: Path | None, out: Path, minutes: float, per_class: int) -> None:
    """Run the stages from images to a prediction; each reads what the one before it has published."""
    name = "bone-marrow-cells" if raw else "synthetic-cells"
    data_repo, model_repo = f"{OWNER}/{name}", f"{OWNER}/rexnet-150-{name}"
    if not raw:
        stage("Draw synthetic cells, since no images were given")
        raw = draw(out, per_class)

    stage("1. Images to a dataset repo")
    build_dataset(raw, out / "dataset")
    python("dataset_script", "push", out / "dataset", data_repo, "--model", model_repo)

    stage("2. Dataset repo to a trained model")
    launch = [Path(sys.executable).with_name("accelerate"), "launch", "--num_processes", 1]
    launch += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += [ROOT / "train_accelerate.py", "--dataset", data_repo, "--output_dir", out / "train"]
    options = ["--image_size", 96, "--epochs", 30, "--max_minutes", minutes, "--overwrite"]
    run(*launch, *start_options(raw), *options)

    stage("3. Trained model to a model repo")
    build("hub_model", out / "train", out / "model")
    python("hub_model", "push", out / "model", model_repo, "--dataset", data_repo)

    stage("4. One line loads it: the first snippet of its card")
    from huggingface_hub import ModelCard  # reads HF_ENDPOINT when it is imported

    from hub_model.card import snippets

    program = snippets(ModelCard.load(model_repo).content)[0]
    print(program.strip(), flush=True)
    subprocess.run([sys.executable, "-c", program], check=True)


def start_options(raw: Path) -> list:
    """Start from the released model, unless the images that it was trained on could be in this dataset's test split."""
    if not (RELEASE / "model.safetensors").is_file():
        return ["--no-pretrained"]
    validation = pq.read_table(RELEASE / "logits_validation.parquet", columns=["file_name"])
    known = set(validation["file_name"].to_pylist())
    if not (raw.parent / TEST_NAMES).is_file() and any(file.name in known for file in raw.rglob("*")):
        print("The released model was trained on images of this folder: training from scratch.")
        return ["--no-pretrained"]
    return ["--init_from", RELEASE, "--learning_rate", 5e-4]


def stage(title: str) -> None:
    print(f"\n=== {title}", flush=True)


def summarize(out: Path, minutes: float) -> None:
    """Print the test metrics, the output folders and the next commands."""
    metrics = json.loads((out / "model" / "metrics.json").read_text())
    test = metrics["splits"].get("test") or metrics["splits"]["validation"]
    figures = f"accuracy {test['accuracy']:.3f}, macro-F1 {test['macro_f1']:.3f} on {test['images']} images"
    print(f"""
=== Done in {minutes:.1f} minutes: {figures}

  dataset repo   {out}/dataset
  training run   {out}/train
  model repo     {out}/model

Open the Space with this model:   make space MODEL={out}/model
Publish to huggingface.co:        hf auth login && make publish OWNER=name
Train on your own images:         make run DATA=folder        (one folder per class)""")


if __name__ == "__main__":
    sys.exit(main())
