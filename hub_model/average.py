"""Average the weights of finished runs (model soups, Wortsman et al. 2022): run folders in, a run folder to resume out."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from hub_model.contract import CONFIG, WEIGHTS, check_config, check_weights
from hub_model.inference.errors import RepoError
from hub_model.run_folder import AVERAGED, read_averaged, without_path

KEPT = (CONFIG, "args.json", "history.jsonl", "timing.jsonl", "checkpoints")  # all else is of the old weights


def average(out: Path, runs: list[str]) -> None:
    """Copy the first run to `out`, with the weighted mean of all runs' weights and without what was measured on its own.

    runs: `FOLDER` or `FOLDER=WEIGHT` (relative, default 1); the first a run folder, the others run folders or model repos.

    Raises:
        RepoError: a folder or weight is missing or wrong, or their classes or architectures differ.
    """
    parts = [parse_part(run) for run in runs]
    total = sum(weight for _, weight in parts)
    (first, share), *others = [(folder, weight / total) for folder, weight in parts]
    if not (first / "checkpoints").is_dir():
        raise RepoError(f"{first} has no checkpoints/, from which the averaged run is resumed")
    if out.exists():
        raise RepoError(f"{out} is there already: name another folder")
    config, mean = check_config(first / CONFIG), {}
    for folder, weight in [(first, share), *others]:
        if check_config(folder / CONFIG).label_names != config.label_names:
            raise RepoError(f"{folder} has other classes than {first}")
        check_weights(folder / WEIGHTS, config)
        for name, tensor in load_file(folder / WEIGHTS).items():
            mean[name] = mean.get(name, 0) + weight * tensor.double()
    weights = {name: mean[name].to(tensor.dtype) for name, tensor in load_file(first / WEIGHTS).items()}
    before = [part | {"weight": part["weight"] * share} for part in read_averaged(first)]
    now = [{"name": without_path(str(folder)), "weight": weight} for folder, weight in others]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
        made = Path(unfinished) / "run"
        shutil.copytree(
            first, made, ignore=lambda folder, names: set(names) - set(KEPT) if Path(folder) == first else ()
        )
        save_file(weights, made / WEIGHTS, metadata={"format": "pt"})
        (made / AVERAGED).write_text(json.dumps({"averaged_with": before + now}, indent=2) + "\n", "utf-8")
        made.rename(out)


def parse_part(run: str) -> tuple[Path, float]:
    """Return folder and weight of `FOLDER` or `FOLDER=WEIGHT`; `RepoError` where the weight is not a number above 0."""
    folder, _, weight = (run, "", "1") if "=" not in run or Path(run).is_dir() else run.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RepoError(f"{run}: the weight must be a number above 0, not {weight!r}")
    return Path(folder), number
