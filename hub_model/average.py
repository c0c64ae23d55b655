"""Average the weights of finished runs (model soups, Wortsman et al. 2022) into a run folder that training can resume."""

from __future__ import annotations

import json
import shutil
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path

from safetensors.torch import load_file, save_file

from dataset_script.arguments import positive
from hub_model.contract import CONFIG, WEIGHTS, check_config, check_weights
from hub_model.inference.errors import RepoError
from hub_model.run_folder import AVERAGED, read_averaged, without_path

# everything else in a run folder describes the weights before averaging
COPIED = (CONFIG, "args.json", "history.jsonl", "timing.jsonl", "checkpoints")


def average(out: Path, runs: list[str]) -> None:
    """Copy the first run to `out` with the weighted mean of all runs' weights, without its logits and measurements.

    runs: `FOLDER` or `FOLDER=WEIGHT` (relative, default 1); the first a run folder, the others run folders or model repos.

    Raises:
        RepoError: a folder or weight is missing or invalid, or their classes or architectures differ.
    """
    weights = [parse_run(run) for run in runs]
    total = sum(weight for _, weight in weights)
    normalized = [(folder, weight / total) for folder, weight in weights]
    (first, first_weight), *others = normalized
    if not (first / "checkpoints").is_dir():
        raise RepoError(f"{first} has no checkpoints/ to resume the averaged run from")
    if out.exists():
        raise RepoError(f"{out} already exists: choose another folder")
    config, mean = check_config(first / CONFIG), {}
    for folder, weight in normalized:
        if check_config(folder / CONFIG).label_names != config.label_names:
            raise RepoError(f"{folder} has other classes than {first}")
        check_weights(folder / WEIGHTS, config)
        for name, tensor in load_file(folder / WEIGHTS).items():
            mean[name] = mean.get(name, 0) + weight * tensor.double()
    averaged = {name: mean[name].to(tensor.dtype) for name, tensor in load_file(first / WEIGHTS).items()}
    sources = [run | {"weight": run["weight"] * first_weight} for run in read_averaged(first)]
    sources += [{"name": without_path(str(folder)), "weight": weight} for folder, weight in others]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        run = Path(temporary) / "run"
        shutil.copytree(
            first, run, ignore=lambda folder, names: set(names) - set(COPIED) if Path(folder) == first else ()
        )
        save_file(averaged, run / WEIGHTS, metadata={"format": "pt"})
        (run / AVERAGED).write_text(json.dumps({"averaged_with": sources}, indent=2) + "\n", "utf-8")
        run.rename(out)


def parse_run(run: str) -> tuple[Path, float]:
    """Split `FOLDER` or `FOLDER=WEIGHT` into folder and weight; `RepoError` unless the weight is a number above 0."""
    folder, _, weight = (run, "", "1") if "=" not in run or Path(run).is_dir() else run.rpartition("=")
    try:
        return Path(folder), positive(weight)
    except ArgumentTypeError as error:
        raise RepoError(f"{run}: the weight {error}") from None
