"""`python -m tests.stress.damage_paths trainer|space FOLDER`: damaged files through one program's own functions.

In: a folder of images, one folder a label (for the trainer with `parquet/`, see `write_parquet`). Out, as JSON on stdout:
`outcomes` (file name -> "kept" or the sentence that refuses it), `wrong` (files that came back as something else), and
`memory_mb`, the largest resident memory over that of a warmed-up process. Anything else that is raised ends it.
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

Outcome = tuple[str, str, bool]  # file name, "kept" or a sentence, whether it came back as what it is


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def write_parquet(raw: Path, out: Path) -> None:
    """The files of a raw folder as a dataset repo of one shard a split, whatever they are; as others might publish it."""
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
    from training.data import decode, geometry
    from training.source import open_source

    labels = {path.name: path.parent.name for path in folder.rglob("*") if path.parent.name in LABELS}
    transform = geometry(CONFIG, 64)
    source = open_source(data_options(folder / "parquet"), streaming=True)
    for row in source.rows("train"):
        right = source.label_names[row.label] == labels[row.name]
        try:
            image = decode(row, transform)
            yield row.name, "kept", right and tuple(image.shape) == (3, 64, 64)
        except TrainingError as error:
            yield row.name, str(error), right and row.name in str(error)


def through_space(folder: Path) -> Iterator[Outcome]:
    """Uploads, 200 at a time, as the tab for many cells reads them."""
    from space.archives import read_uploads

    paths = sorted(str(path) for path in folder.rglob("*") if path.parent.name in LABELS)
    for start in range(0, len(paths), 200):
        part = paths[start : start + 200]
        for path, entry in zip(part, read_uploads(part), strict=True):
            right = entry.name == Path(path).name and (entry.picture is None) != (entry.error is None)
            if entry.picture is not None:
                right &= entry.picture.mode == "RGB" and max(entry.picture.size) <= 1024
            yield entry.name, "kept" if entry.error is None else str(entry.error), right


PATHS: dict[str, Callable[[Path], Iterator[Outcome]]] = {"trainer": through_trainer, "space": through_space}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    outcomes, wrong, baseline, peak = {}, [], 0.0, 0.0
    for number, (file, outcome, right) in enumerate(PATHS[name](folder)):
        if number == 20:  # imports, decoders and the transform have been used by now
            baseline = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
        outcomes[file] = outcome
        if not right:
            wrong.append(file)
    peak = resident("VmHWM")
    print(json.dumps({"outcomes": outcomes, "wrong": wrong, "memory_mb": round(peak - baseline)}))


if __name__ == "__main__":
    main()
