"""A dataset repo of synthetic cells, for tests that need only its Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets

from dataset_script.synthetic_cells import LOOKS, draw_cell
from tests.pictures import encoded

CARD = "---\npretty_name: Synthetic cells\nlicense: apache-2.0\n---\n\n# Synthetic cells\n"


def build(
    folder: Path,
    sizes: dict[str, int],
    names: Sequence[str] = tuple(LOOKS),
    file_name: str = "{label}_{number}{i:04d}.jpg",
) -> Path:
    """Write `sizes[split]` cells per class for each split to `folder/data` and return the folder."""
    labels, text = datasets.ClassLabel(names=list(names)), datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": labels, "file_name": text})
    (folder / "data").mkdir(parents=True)
    for number, (split, per_class) in enumerate(sizes.items()):
        rows = []
        for i in range(per_class):
            for index, label in enumerate(LOOKS):
                data = encoded(draw_cell(label, 20_000 + 1_000 * number + i), "JPEG", quality=90)
                name = file_name.format(label=label, number=number, i=i)
                rows.append({"image": {"bytes": data, "path": name}, "label": index, "file_name": name})
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", batch_size=32)
    (folder / "README.md").write_text(CARD)
    return folder
