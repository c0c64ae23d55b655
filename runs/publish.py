"""Publish a dataset, a model and a Space that link one another, and a collection of the three: `make publish OWNER=name`.

To huggingface.co after `hf auth login`, to the Hub of `HF_ENDPOINT` where it is set, else to the embedded Hub in OUT/hub.
Each repo gets one commit, or none where nothing changed. `--dry-run` prints what would be pushed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from dataset_script.push import push as push_dataset
from dataset_script.source import DatasetError
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import HUB_ERRORS, hub_refusal, is_repo_id
from hub_model.publish import Published
from hub_model.verify import verify
from local_hub import HubError
from runs.folders import MARKERS, RELEASE, ROOT, check_folders, dataset_folder, embedded_hub, model_folder
from space.build import build_space, push_space

TITLE, DESCRIPTION = "Bone-marrow cell classifier", "Dataset, calibrated model and Space"

LOAD_DATASET = """
from datasets import load_dataset

dataset = load_dataset("{dataset}")
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
class Repos:
    """The ids of the three repos."""

    dataset: str
    model: str
    space: str


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runs.publish", description=__doc__.partition(": ")[0])
    option = parser.add_argument
    option("owner", metavar="OWNER", help="user or organization of the repos")
    data = "images, one folder a class, or a dataset repo folder (default: that of the last `make run`, else synthetic cells)"
    option("--data", type=Path, help=data)
    option("--model", type=Path, default=RELEASE, help="model repo or run folder (default: the release)")
    option("--dataset_name", help="default: bone-marrow-cells, or synthetic-bone-marrow-cells")
    option("--model_name", default="bone-marrow-rexnet150", help="default: %(default)s")
    option("--space_name", default="bone-marrow-cells", help="default: %(default)s")
    option("--collection", default=TITLE, metavar="TITLE", help="'' for none (default: %(default)s)")
    option("--private", action="store_true", help="create private repos (default: public)")
    option("--dry-run", action="store_true", help="print repos, files, sizes and licences; push nothing")
    option("--out", type=Path, default=Path(".run"), help="working folder (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Publish to the Hub of this process, or start the embedded one where there is neither endpoint nor token."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        check_folders(arguments.data, arguments.out)
        if arguments.dry_run or "HF_ENDPOINT" in os.environ or get_token():
            publish(arguments)
            return 0
        with embedded_hub(arguments.out) as hub:
            print(
                f"No token (hf auth login) and no HF_ENDPOINT: publishing to the embedded Hub in {hub.root}"
            )
            command = [sys.executable, "-m", "runs.publish", *argv]
            code = subprocess.run(command, env=os.environ | hub.environment).returncode
        if code == 0:
            print(f"\nServe these repos again: python -m local_hub --root {hub.root}")
        return code
    except (DatasetError, HubError, NotADirectoryError, RepoError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
    except HUB_ERRORS as error:
        print(f"error: {hub_refusal(error, arguments.owner)}", file=sys.stderr)
    return 1


def publish(arguments: argparse.Namespace) -> None:
    """Publish dataset, model, Space and collection, and run the snippets.

    Raises:
        DatasetError, RepoError, NotADirectoryError, CalledProcessError or one of HUB_ERRORS: what does not fit.
    """
    if not arguments.dry_run:
        check_token()
    dataset, model = (
        dataset_folder(arguments.data, arguments.out),
        model_folder(arguments.model, arguments.out),
    )
    repos = choose_names(arguments, dataset)
    if arguments.dry_run:
        return print_plan(repos, dataset, model)
    check_free(repos)
    urls = push_all(repos, dataset, model, arguments.private)
    if arguments.collection:
        urls["collection"] = collect(repos, arguments.collection, arguments.private)
    run_snippets(repos)
    print("\nPublished\n")
    for kind, url in urls.items():
        print(f"  {kind:<12}{url}")
    for snippet in (LOAD_DATASET, LOAD_MODEL, CALL_SPACE):
        print(snippet.format(**asdict(repos)).rstrip())


def print_plan(repos: Repos, dataset: Path, model: Path) -> None:
    """Print the repos with their licences, files and sizes."""
    print(f"To {constants.ENDPOINT}:")
    with tempfile.TemporaryDirectory() as built:
        build_space(Path(built), repos.model, repos.dataset)
        for (kind, name), folder in zip(asdict(repos).items(), (dataset, model, Path(built)), strict=True):
            licence = RepoCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("license")
            sizes = {
                path.relative_to(folder): path.stat().st_size
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            total = sum(sizes.values()) / 1e6
            print(
                f"\n{kind} {name}: {len(sizes)} files, {total:.1f} MB, {licence or 'no licence in its card'}"
            )
            for path, size in sizes.items():
                print(f"  {size / 1e6:10.3f} MB  {path}")


# ---- names and access
def check_token() -> None:
    """Raise RepoError without a token; one of HUB_ERRORS for one that the Hub does not know."""
    if not get_token():
        raise RepoError("no token: run `hf auth login` with a token that has write access, or set HF_TOKEN")
    HfApi().whoami()


def choose_names(arguments: argparse.Namespace, dataset: Path) -> Repos:
    """The ids of the repos; RepoError for what is no id."""
    tags = RepoCard.load(dataset / "README.md", ignore_metadata_errors=True).data.get("tags") or []
    default = "synthetic-bone-marrow-cells" if "synthetic" in tags else "bone-marrow-cells"
    names = (arguments.dataset_name or default, arguments.model_name, arguments.space_name)
    repos = Repos(*(f"{arguments.owner}/{name}" for name in names))
    for kind, name in asdict(repos).items():
        if not is_repo_id(name):
            raise RepoError(
                f"{name!r} is not a repo id for the {kind}: OWNER/NAME of letters, digits, '-', '_' and '.'"
            )
    return repos


def check_free(repos: Repos) -> None:
    """Raise RepoError for a repo of one of these names with other content: a push would delete it."""
    for kind, name in asdict(repos).items():
        try:
            files = set(HfApi().list_repo_files(name, repo_type=kind))
        except RepositoryNotFoundError:
            continue
        if files - {".gitattributes", "README.md"} and MARKERS[kind] not in files:
            raise RepoError(f"the name is taken: {kind} {name} holds something else; pass --{kind}_name")


# ---- the Hub
def push_all(repos: Repos, dataset: Path, model: Path, private: bool) -> dict[str, str]:
    """Push the three repos, each after those that it names; return their addresses."""
    from hub_model.push import push as push_model  # imports torch

    pushes: dict[str, Callable[[], Published]] = {
        "dataset": lambda: push_dataset(dataset, repos.dataset, private=private),
        "model": lambda: push_model(model, repos.model, private, repos.dataset, repos.space),
        "space": lambda: push_space(repos.space, repos.model, repos.dataset, private),
    }
    urls = {}
    for kind, push in pushes.items():
        urls[kind] = published = push()
        outcome = f"commit {published.commit[:8]}" if published.changed else "unchanged"
        print(f"{kind} {getattr(repos, kind)}: {outcome}", flush=True)
    return urls


def collect(repos: Repos, title: str, private: bool) -> str:
    """Put the three repos into the owner's collection of that title; return its address."""
    api, owner = HfApi(), repos.model.split("/")[0]
    options = {"namespace": owner, "description": DESCRIPTION, "private": private, "exists_ok": True}
    collection = api.create_collection(title, **options)
    there = {(item.item_type, item.item_id) for item in collection.items}
    for kind, name in asdict(repos).items():
        if (kind, name) not in there:
            api.add_collection_item(collection.slug, name, kind, exists_ok=True)
    return collection.url


def run_snippets(repos: Repos) -> None:
    """Run the snippets, and those of the model card, in fresh processes with empty caches; RepoError if one fails.

    The Space's snippet runs where the Space is up.
    """
    program = (LOAD_DATASET + LOAD_MODEL).format(**asdict(repos))
    if HfApi().space_info(repos.space).runtime.stage == "RUNNING":
        program += 'dataset["test"][0]["image"].save("cell.jpg")' + CALL_SPACE.format(**asdict(repos))
    os.environ["HF_TOKEN"] = get_token()  # an empty HF_HOME holds no token
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HF_HOME": folder, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RepoError(f"a published snippet fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    verify(repos.model)
    print(f"The snippets run: {done.stdout.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
