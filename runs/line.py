"""The whole line in one go: `make run [DATA=folder]`.

Images become a dataset repo, a trained model, a model repo, and a prediction from one line of timm. Each stage is a command
of its own, printed before it runs, and talks to a Hub: the embedded one (see `local_hub`), since a newcomer has no account.
With `HF_ENDPOINT` unset, the same commands talk to huggingface.co.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from dataset_script.arguments import positive, whole_number
from local_hub import HubError, LocalHub

ROOT = Path(__file__).parent.parent
RELEASE = ROOT / "hub_model" / "release"
LISTED_TEST_NAMES = (
    "published_test_names.txt"  # looked for beside the images: the published test set of the Matek data
)
OWNER = "localdev"

PREDICT = """
import sys, timm, torch
from PIL import Image
model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()  # <- the one line
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
names = model.pretrained_cfg["label_names"]
for file in sys.argv[1:]:
    probabilities = model(transform(Image.open(file).convert("RGB"))[None]).softmax(1)[0]
    best = probabilities.topk(min(3, len(names)))
    print(file.split("/")[-1].ljust(20), "  ".join(f"{{names[i]}} {{p:.2f}}" for p, i in zip(best[0], best[1])))
"""


def main() -> int:
    """Run every stage; stop at the first that fails, with its exit code."""
    parser = argparse.ArgumentParser(prog="python -m runs.line", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder of images, one folder a class (default: drawn cells)"
    )
    parser.add_argument("--out", type=Path, default=Path(".run"), help="where everything goes")
    parser.add_argument("--minutes", type=positive, default=4.0, help="how long to train")
    parser.add_argument(
        "--per_class", type=whole_number(10), default=60, help="drawn cells of each class, without --data"
    )
    arguments = parser.parse_args()
    if arguments.data and not arguments.data.is_dir():
        print(f"error: there is not a directory {arguments.data}", file=sys.stderr)
        return 1
    started = time.monotonic()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: {arguments.out} cannot be a folder ({error.strerror})", file=sys.stderr)
        return 1
    try:
        with LocalHub(arguments.out / "hub") as hub:
            os.environ.update(hub.environment)
            close(arguments, run_line(arguments), started)
    except HubError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: stopped at: {shlex.join(map(str, error.cmd))}", file=sys.stderr)
        return error.returncode
    return 0


def run_line(arguments: argparse.Namespace) -> dict:
    """Run the stages and return what the closing screen tells."""
    out, raw = arguments.out, arguments.data
    name = "bone-marrow-cells" if raw else "drawn-cells"
    data_repo, model_repo = f"{OWNER}/{name}", f"{OWNER}/rexnet-150-{name}"
    if not raw:
        raw = out / "raw"
        shutil.rmtree(raw, ignore_errors=True)
        stage("Draw cells, since no images were given")
        python("dataset_script", "synthetic", raw, "--per_class", arguments.per_class)

    stage("1. Images to a dataset repo")
    listed = build_data_set(raw, out / "dataset")
    python("dataset_script", "push", out / "dataset", data_repo)

    stage("2. Dataset repo to a trained model")
    start = starting_point(raw, listed)
    launch = [
        Path(sys.executable).with_name("accelerate"),
        "launch",
        "--num_processes",
        1,
        "--num_machines",
        1,
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", ROOT / "train_accelerate.py"]
    run(*launch, "--dataset", data_repo, *start, "--image_size", 96, "--output_dir", out / "train", "--overwrite",
        "--epochs", 30, "--max_minutes", arguments.minutes)  # fmt: skip

    stage("3. Trained model to a model repo")
    python("hub_model", "build", out / "train", out / "model", "--overwrite")
    python("hub_model", "push", out / "model", model_repo)
    python("hub_model", "verify", model_repo)

    stage("4. One line loads it")
    images = [
        next(iter(sorted(folder.rglob("*.jpg"))))
        for folder in sorted(raw.iterdir())
        if any(folder.rglob("*.jpg"))
    ]
    program = PREDICT.format(repo=model_repo)
    print(program.strip(), flush=True)
    subprocess.run([sys.executable, "-c", program, *map(str, images)], check=True)
    return {"data_repo": data_repo, "model_repo": model_repo}


def build_data_set(raw: Path, out: Path) -> bool:
    """Build the dataset repo folder; return whether a published list of test names lay beside the images."""
    listed = raw.parent / LISTED_TEST_NAMES
    names = ["--test_names", listed] if listed.is_file() else []
    python("dataset_script", "build", raw, out, "--overwrite", *names)
    return listed.is_file()


def starting_point(raw: Path, published_split: bool) -> list:
    """Return where to start: the released model, unless it was trained on test images of this split."""
    if not (RELEASE / "model.safetensors").is_file():
        return ["--no-pretrained"]
    scored = RELEASE / "logits_validation.parquet"
    known = set(pq.read_table(scored, columns=["file_name"])["file_name"].to_pylist())
    if not published_split and any(file.name in known for file in raw.rglob("*")):
        print(
            "These are images that the released model was trained on, split anew: training starts from scratch."
        )
        return ["--no-pretrained"]
    return ["--init_from", RELEASE, "--learning_rate", 5e-4]


def stage(title: str) -> None:
    print(f"\n=== {title}", flush=True)


def python(module: str, *arguments: object) -> None:
    run(sys.executable, "-m", module, *arguments)


def run(*command: object) -> None:
    """Print a command as a person would type it, and run it from the project's folder."""
    words = [str(word) for word in command]
    shown = [Path(words[0]).name, *words[1:]]
    print(f"$ {shlex.join(shown)}", flush=True)
    subprocess.run(words, check=True)


def close(arguments: argparse.Namespace, repos: dict, started: float) -> None:
    """Print what is where, how good it is, and what to do next."""
    metrics = json.loads((arguments.out / "model" / "metrics.json").read_text())
    test = metrics["splits"].get("test") or metrics["splits"]["validation"]
    out, minutes = arguments.out, (time.monotonic() - started) / 60
    print(
        f"""
=== Done in {minutes:.1f} minutes: accuracy {test["accuracy"]:.3f}, macro-F1 {test["macro_f1"]:.3f} on {test["images"]} images

  dataset   {out}/dataset   and, on the embedded Hub, {repos["data_repo"]}
  run        {out}/train     history.jsonl, curves.png, logits
  model      {out}/model     and, on the embedded Hub, {repos["model_repo"]}
  Hub        {out}/hub

Next
  serve the embedded Hub      .venv/bin/python -m local_hub --root {out}/hub
  try the Space               make space
  your own images             make run DATA=folder        (one folder a class)
  publish to huggingface.co   hf auth login, then
                              .venv/bin/python -m dataset_script push {out}/dataset OWNER/NAME
                              .venv/bin/python -m hub_model push {out}/model OWNER/NAME"""
    )


if __name__ == "__main__":
    sys.exit(main())
