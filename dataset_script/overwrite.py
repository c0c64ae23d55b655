"""What `--overwrite` may delete: an output of this project, known by a file that each of its kind has, and nothing else."""

from __future__ import annotations

from pathlib import Path


def holds_other_things(out: Path, mark: str) -> bool:
    """Return whether `out` is a file, or a folder with content but without the file `mark`."""
    return out.exists() and not (out / mark).is_file() and (out.is_file() or any(out.iterdir()))
