"""Run the Space on this machine, with the embedded Hub: `make space [DATA=folder] [MODEL=folder]`.

The model (by default the release) and the dataset are pushed to the embedded Hub, from which `python -m space` reads them
as it would from huggingface.co. What has not changed since the last run is neither rebuilt nor pushed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from dataset_script.arguments import port
from local_hub import HubError, LocalHub
from runs.folders import (
    OWNER,
    RELEASE,
    ROOT,
    check_folders,
    dataset_folder,
    embedded_hub,
    fingerprint,
    model_folder,
    python,
)

DATASET = f"{OWNER}/bone-marrow-cells"


def main(argv: list[str] | None = None) -> int:
    """Push what has changed, then run the Space until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m runs.space", description=__doc__.splitlines()[0])
    option = parser.add_argument
    data = "images, one folder per class (default: the dataset of the last `make run`, else synthetic cells)"
    option("--data", type=Path, help=data)
    option("--model", type=Path, default=RELEASE, help="model repo or run folder (default: the release)")
    option("--out", type=Path, default=Path(".run"), help="working folder (default: %(default)s)")
    option("--port", type=port, help="port of the Space (default: the first free one from 7860)")
    arguments = parser.parse_args(argv)
    started, out = time.monotonic(), arguments.out
    try:
        check_folders(arguments.data, out)
        with embedded_hub(out) as hub:
            os.environ.update(hub.environment)
            model = model_folder(arguments.model, out)
            name = f"{OWNER}/{'rexnet-150-bone-marrow' if model.samefile(RELEASE) else 'my-model'}"
            push_changed("dataset_script", dataset_folder(arguments.data, out), DATASET, hub)
            push_changed("hub_model", model, name, hub)
            print(f"The embedded Hub is ready after {time.monotonic() - started:.1f} s", flush=True)
            space = ["-m", "space", "--model", name, "--dataset", DATASET]
            space += ["--port", str(arguments.port)] if arguments.port else []
            return subprocess.run([sys.executable, *space]).returncode
    except (HubError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 0


def push_changed(program: str, folder: Path, repo: str, hub: LocalHub) -> None:
    """Push a folder with `python -m PROGRAM push`, unless neither has changed since the last push."""
    stamps = hub.root / "pushed.json"
    pushed = json.loads(stamps.read_text()) if stamps.is_file() else {}
    digest = fingerprint(folder, ROOT / program)
    if pushed.get(repo) != digest:
        python(program, "push", folder, repo)
        stamps.write_text(json.dumps({**pushed, repo: digest}))


if __name__ == "__main__":
    sys.exit(main())
