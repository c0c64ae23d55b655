"""The Space here, over the embedded Hub: `make space [DATA=folder]`.

The released model and a dataset are published on the embedded Hub (again only where they changed); `python -m space` reads
them from there, as it would from huggingface.co. Without DATA the dataset is that of the last `make run`, else drawn cells.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from dataset_script.arguments import port
from local_hub import HubError, LocalHub
from runs.line import OWNER, RELEASE, build_data_set, python

MODEL, CELLS = f"{OWNER}/rexnet-150-bone-marrow", f"{OWNER}/bone-marrow-cells"


def main() -> int:
    """Publish, start the Space, and say how long it took."""
    parser = argparse.ArgumentParser(prog="python -m runs.space", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of images, one folder a class")
    parser.add_argument(
        "--out", type=Path, default=Path(".run"), help="where the Hub and the dataset are kept"
    )
    parser.add_argument("--port", type=port, default=7860)
    arguments = parser.parse_args()
    if not (RELEASE / "model.safetensors").is_file():
        print(f"error: there is no released model in {RELEASE}", file=sys.stderr)
        return 1
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
            python("dataset_script", "push", data_set(arguments), CELLS)
            python("hub_model", "push", RELEASE, MODEL)
            print(f"published after {time.monotonic() - started:.1f} s", flush=True)
            space = [
                sys.executable,
                "-m",
                "space",
                "--model",
                MODEL,
                "--dataset",
                CELLS,
                "--port",
                str(arguments.port),
            ]
            return subprocess.run(space).returncode
    except HubError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 0


def data_set(arguments: argparse.Namespace) -> Path:
    """Return the dataset repo folder, built when it has to be."""
    out = arguments.out / "dataset"
    if arguments.data:
        build_data_set(arguments.data, out)
    elif not (out / "README.md").is_file():
        python("dataset_script", "synthetic", arguments.out / "raw", "--per_class", 60)
        build_data_set(arguments.out / "raw", out)
    return out


if __name__ == "__main__":
    sys.exit(main())
