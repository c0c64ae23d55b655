"""Publish a dataset, a model and a Space that link one another, and a collection of the three: `make publish OWNER=name`.

To huggingface.co after `hf auth login`, to the Hub of `HF_ENDPOINT` where it is set, else to the embedded Hub in OUT/hub.
Each repo gets one commit, or none where nothing changed. `--dry-run` prints what would be pushed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from local_hub import HubError, LocalHub
from local_hub.server import DEFAULT_PORT
from runs.pipeline import RELEASE, ROOT, build_dataset, check_folders, draw, python

MARKERS = {"dataset": "splits.csv", "model": "metrics.json", "space": "app.py"}  # what only such a repo has
TITLE, DESCRIPTION = "Bone-marrow cell classifier", "Dataset, calibrated model and Space: bone-marrow cells"

LOAD_DATASET = """
from datasets import load_dataset

dataset = load_dataset("{dataset}")
print(dataset)
"""
LOAD_MODEL = """
import timm
from transformers import pipeline

model = timm.create_model("hf-hub:{model}", pretrained=True).eval()
classify = pipeline("image-classification", model="{model}")
print(classify(dataset["test"][0]["image"], top_k=3))
"""
CALL_SPACE = """
from gradio_client import Client, handle_file

client = Client("{space}")
print(client.predict(handle_file("cell.jpg"), api_name="/predict"))
"""


@dataclass(frozen=True)
class Names:
    """The ids of the three repos."""

    dataset: str
    model: str
    space: str


def main(argv: list[str] | None = None) -> int:
    """Publish to the Hub that the environment names; without one, and without a token, to the embedded one."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        check_folders(arguments.data, arguments.out)
        if "HF_ENDPOINT" in os.environ or has_token():
            return publish(arguments)
        with LocalHub(arguments.out / "hub", DEFAULT_PORT) as hub:
            print(
                f"No token (hf auth login) and no HF_ENDPOINT: publishing to the embedded Hub in {hub.root}"
            )
            command = [sys.executable, "-m", "runs.publish", *argv]
            code = subprocess.run(command, cwd=ROOT, env=os.environ | hub.environment).returncode
        if code == 0 and not arguments.dry_run:
            print(f"\nServe this Hub again: {Path(sys.executable).name} -m local_hub --root {hub.root}")
        return code
    except (HubError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runs.publish", description=__doc__.partition(": ")[0])
    parser.add_argument("owner", metavar="OWNER", help="user or organization that will own the repos")
    parser.add_argument("--data", type=Path, help="images, one folder a class, or a built dataset repo folder "
                        "(default: the dataset of the last `make run`, else synthetic cells)")  # fmt: skip
    parser.add_argument("--model", type=Path, default=RELEASE, help="model repo folder, or run folder "
                        "(default: the release)")  # fmt: skip
    parser.add_argument("--dataset_name", default="bone-marrow-cells", help="default: %(default)s")
    parser.add_argument("--model_name", default="bone-marrow-rexnet150", help="default: %(default)s")
    parser.add_argument("--space_name", default="bone-marrow-cells", help="default: %(default)s")
    parser.add_argument(
        "--collection", default=TITLE, metavar="TITLE", help="default: %(default)s; '' for none"
    )
    parser.add_argument("--private", action="store_true", help="create private repos")
    parser.add_argument(
        "--dry-run", action="store_true", help="print repos, files, sizes and licences; push nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".run"), help="working folder (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    for name in ("data", "model", "out"):  # the embedded Hub's run has the project as its working directory
        if getattr(arguments, name):
            setattr(arguments, name, getattr(arguments, name).absolute())
    return arguments


def has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def publish(arguments: argparse.Namespace) -> int:
    """Publish to the Hub of this process; expected failures end with one sentence and exit code 1."""
    from dataset_script.source import DatasetError  # imported late: they read HF_ENDPOINT at import
    from hub_model.inference.errors import RepoError
    from hub_model.inference.model_repo import HUB_ERRORS, hub_refusal

    owner = arguments.owner
    names = Names(
        *(f"{owner}/{name}" for name in (arguments.dataset_name, arguments.model_name, arguments.space_name))
    )
    try:
        check_names(names, dry_run=arguments.dry_run)
        dataset, model = (
            dataset_folder(arguments.data, arguments.out),
            model_folder(arguments.model, arguments.out),
        )
        if arguments.dry_run:
            print_plan(names, dataset, model)
            return 0
        urls = push_all(names, dataset, model, arguments.private)
        if arguments.collection:
            urls["collection"] = collect(names, arguments.collection, arguments.private)
        run_snippets(names)
    except (DatasetError, RepoError, NotADirectoryError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except HUB_ERRORS as error:
        print(f"error: {hub_refusal(error, owner, 'model')}", file=sys.stderr)
        return 1
    print("\nPublished\n")
    for kind, url in urls.items():
        print(f"  {kind:<12}{url}")
    for title, snippet in snippets(names).items():
        print(f"\n# {title}{snippet.rstrip()}")
    return 0


# ---- what is published
def dataset_folder(data: Path | None, out: Path) -> Path:
    """The dataset repo folder: `data` where it is one, else built from it where it has changed, else the last one."""
    if data and (data / MARKERS["dataset"]).is_file():
        return data
    built, stamp = out / "dataset", out / "dataset.sha256"
    if data or not (built / "README.md").is_file():
        raw = data or draw(out, per_class=60)
        if (
            not (built / "README.md").is_file()
            or not stamp.is_file()
            or stamp.read_text() != fingerprint(raw)
        ):
            build_dataset(raw, built)
            stamp.write_text(fingerprint(raw))
    return built


def model_folder(model: Path, out: Path) -> Path:
    """The model repo folder: `model` where it is one, else built from that run folder."""
    if not model.is_dir():
        raise NotADirectoryError(f"--model {model} is not a directory")
    if (model / MARKERS["model"]).is_file():
        return model
    python("hub_model", "build", model, out / "model", "--overwrite")
    return out / "model"


def fingerprint(*folders: Path) -> str:
    """A digest of the names, sizes and modification times of all files below `folders`."""
    digest = hashlib.sha256()
    files = (path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts)
    for path in sorted(path for path in files if path.is_file()):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def print_plan(names: Names, dataset: Path, model: Path) -> None:
    """The repos, with their licences, files and sizes."""
    from huggingface_hub import RepoCard, constants

    from space.build import build_space

    print(f"To {constants.ENDPOINT}:")
    with tempfile.TemporaryDirectory() as built:
        build_space(Path(built), names.model, names.dataset)
        for (kind, name), folder in zip(vars(names).items(), (dataset, model, Path(built)), strict=True):
            licence = RepoCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("license")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            total = sum(path.stat().st_size for path in files)
            print(f"\n{kind} {name}: {len(files)} files, {total / 1e6:.1f} MB, {licence or 'no licence'}")
            for path in files:
                print(f"  {path.stat().st_size / 1e6:10.3f} MB  {path.relative_to(folder)}")


# ---- the Hub
def check_names(names: Names, dry_run: bool) -> None:
    """Raise RepoError for a name that is no repo id, without a valid token, or for a repo that is something else."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    from hub_model.inference.errors import RepoError
    from hub_model.inference.model_repo import is_repo_id

    for kind, name in vars(names).items():
        if not is_repo_id(name):
            raise RepoError(
                f"{name!r} is not a repo id for the {kind}: OWNER/NAME, of letters, digits, '-', '_', '.'"
            )
    if dry_run:
        return
    if not has_token():
        raise RepoError("no token: run `hf auth login` with a token that has write access, or set HF_TOKEN")
    api = HfApi()
    api.whoami()
    for kind, name in vars(names).items():
        try:
            files = set(api.list_repo_files(name, repo_type=kind))
        except RepositoryNotFoundError:
            continue
        if files - {".gitattributes", "README.md"} and MARKERS[kind] not in files:
            raise RepoError(f"the name is taken: {kind} {name} holds something else; pass --{kind}_name")


def push_all(names: Names, dataset: Path, model: Path, private: bool) -> dict[str, str]:
    """Push the three repos in the order in which they refer to each other; return their addresses."""
    from dataset_script.push import push as push_dataset
    from hub_model.push import push as push_model
    from space.build import push_space

    urls = {}
    for kind, push in {
        "dataset": lambda: push_dataset(dataset, names.dataset, private=private),
        "model": lambda: push_model(model, names.model, private),
        "space": lambda: push_space(names.space, names.model, names.dataset, private),
    }.items():
        urls[kind] = pushed = push()
        outcome = f"commit {pushed.commit[:8]}" if pushed.changed else "unchanged"
        print(f"{kind} {getattr(names, kind)}: {outcome}", flush=True)
    return urls


def collect(names: Names, title: str, private: bool) -> str:
    """Put the three repos into a collection of that title and return its address."""
    from huggingface_hub import HfApi

    api, owner = HfApi(), names.model.split("/")[0]
    options = {"namespace": owner, "description": DESCRIPTION, "private": private, "exists_ok": True}
    collection = api.create_collection(title, **options)
    there = {(item.item_type, item.item_id) for item in collection.items}
    for kind, name in vars(names).items():
        if (kind, name) not in there:
            api.add_collection_item(collection.slug, name, kind, exists_ok=True)
    return collection.url


# ---- snippets
def snippets(names: Names) -> dict[str, str]:
    """The published snippets, by what they show."""
    texts = {"the dataset": LOAD_DATASET, "the model": LOAD_MODEL, "the Space, once it runs": CALL_SPACE}
    return {title: text.format(**vars(names)) for title, text in texts.items()}


def run_snippets(names: Names) -> None:
    """Run the snippets as a stranger would, in a fresh process with an empty cache.

    Raises:
        RepoError: one of them fails.
    """
    from huggingface_hub import HfApi, get_token

    from hub_model.inference.errors import RepoError

    stage = HfApi().space_info(names.space).runtime.stage
    texts = [text for title, text in snippets(names).items() if "Space" not in title or stage == "RUNNING"]
    with tempfile.TemporaryDirectory() as home:
        program = "\n".join(texts).replace("cell.jpg", f"{home}/cell.jpg")
        program = program.replace(
            "from gradio_client", f'dataset["test"][0]["image"].save("{home}/cell.jpg")\nfrom gradio_client'
        )
        environment = os.environ | {"HF_HOME": home, "HF_TOKEN": get_token() or ""}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
    if done.returncode:
        raise RepoError(f"a published snippet fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    print(f"the snippets run: {done.stdout.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
