"""A dataset repo of drawn cells by the contract of DESIGN.md, for tests that need nothing but its Parquet
files."""

from __future__ import annotations

import io
from pathlib import Path

import datasets

from dataset_script.synthetic_cells import LOOKS, draw_cell

COLUMNS = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(LOOKS)),
        "file_name": datasets.Value("string"),
    }
)


CARD = "---\npretty_name: Synthetic cells\nlicense: apache-2.0\n---\n\n# Synthetic cells\n"


def build(folder: Path, sizes: dict[str, int]) -> Path:
    """Write `sizes[split]` cells a class for each split into `folder/data` and return the folder."""
    (folder / "data").mkdir(parents=True)
    for number, (split, per_class) in enumerate(sizes.items()):
        rows = []
        for i in range(per_class):
            for label in LOOKS:
                buffer = io.BytesIO()
                draw_cell(label, 20_000 + 1_000 * number + i).save(buffer, "JPEG", quality=90)
                name = f"{label}_{number}{i:04d}.jpg"
                rows.append(
                    {"image": {"bytes": buffer.getvalue(), "path": name}, "label": label, "file_name": name}
                )
        table = datasets.Dataset.from_list(rows, features=COLUMNS)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", batch_size=32)
    (folder / "README.md").write_text(CARD)
    return folder
