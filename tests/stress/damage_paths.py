"""`python -m tests.stress.damage_paths trainer|space FOLDER`: read damaged files with the functions of the trainer or the Space.

FOLDER has one folder of images per label (and, for the trainer, `parquet/`, see `write_parquet`). Prints JSON: `outcomes`
(file name -> "kept" or the error), `wrong` (files with a wrong label or image), and `memory_mb`, the peak resident memory
above that of the warmed-up process. Any other exception ends it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dataset_script.parquet import features, write_shard
from dataset_script.records import Row
from tests.stress.mutations import LABELS
from tests.training.small import CONFIG, data_options

Outcome = tuple[str, str, bool]  # file name, "kept" or the error, whether label and image are right


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def write_parquet(raw: Path, out: Path) -> None:
    """Write all files of a raw folder, unchecked, to a dataset repo with one shard per split, as others might publish it."""
    out.mkdir(parents=True)
    rows = [
        Row(str(path), b"", path.stat().st_size, label=LABELS.index(path.parent.name), file_name=path.name)
        for path in sorted(raw.rglob("*"))
        if path.is_file()
    ]
    schema = features(list(LABELS)).arrow_schema
    for split, chosen in (("train", rows), ("validation", rows[:1])):
        shard = out / f"{split}-00000-of-00001.parquet"
        write_shard(shard, chosen, schema, lambda row: Path(row.path).read_bytes(), lambda written: None)


def through_trainer(folder: Path) -> Iterator[Outcome]:
    """The rows of the streamed dataset, decoded as `StreamSplit` does."""
    from training import TrainingError
    from training.data import decode, evaluation_transform
    from training.source import open_source

    labels = {path.name: path.parent.name for path in folder.rglob("*") if path.parent.name in LABELS}
    transform = evaluation_transform(CONFIG, 64)
    source = open_source(data_options(folder / "parquet"), streaming=True)
    for row in source.rows("train"):
        right = source.label_names[row.label] == labels[row.name]
        try:
            image = decode(row, transform)
            yield row.name, "kept", right and tuple(image.shape) == (3, 64, 64)
        except TrainingError as error:
            yield row.name, str(error), right and row.name in str(error)


def through_space(folder: Path) -> Iterator[Outcome]:
    """Uploads of 200 files each, as the tab for many cells reads them."""
    from space.archives import read_uploads

    paths = sorted(str(path) for path in folder.rglob("*") if path.parent.name in LABELS)
    for start in range(0, len(paths), 200):
        chunk = paths[start : start + 200]
        for path, entry in zip(chunk, read_uploads(chunk), strict=True):
            right = entry.name == Path(path).name and (entry.picture is None) != (entry.error is None)
            if entry.picture is not None:
                right &= entry.picture.mode == "RGB" and max(entry.picture.size) <= 1024
            yield entry.name, "kept" if entry.error is None else str(entry.error), right


PATHS: dict[str, Callable[[Path], Iterator[Outcome]]] = {"trainer": through_trainer, "space": through_space}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    outcomes, wrong, baseline = {}, [], 0.0
    for number, (file, outcome, right) in enumerate(PATHS[name](folder)):
        if number == 20:  # the process is warmed up: imports, decoders and the transform have been used
            baseline = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
        outcomes[file] = outcome
        if not right:
            wrong.append(file)
    memory = resident("VmHWM") - baseline
    print(json.dumps({"outcomes": outcomes, "wrong": wrong, "memory_mb": round(memory)}))


if __name__ == "__main__":
    main()
