"""Publish a dataset, a model and a Space that link to each other, and a collection of the three: `make publish OWNER=name`.

They go to the Hub of `HF_ENDPOINT` if it is set, to huggingface.co after `hf auth login`, else to the embedded Hub in OUT/hub.
Each repo gets one commit, or none if nothing has changed. Everything that can be checked is checked before the first push.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, RepoCard, constants, get_token, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from dataset_script.push import check_contract
from dataset_script.push import push as push_dataset
from dataset_script.source import DatasetError
from hub_model.inference.errors import RepoError
from hub_model.inference.hub import HUB_ERRORS, hub_error_message, is_repo_id
from hub_model.publish import Published, check_access, check_private
from local_hub import HubError
from runs.folders import MARKERS, RELEASE, check_folders, dataset_folder, embedded_hub, model_folder
from space.build import build_space, push_space

TITLE, DESCRIPTION = "Bone-marrow cell classifier", "Dataset, calibrated model and Space"
PRINTED = {"dataset": 1, "model": 2, "space": 1}  # number of snippets of each card to print at the end
Repos = dict[str, str]  # the repo ids of dataset, model and space


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runs.publish", description=__doc__.partition(": ")[0])
    option = parser.add_argument
    option("owner", metavar="OWNER", help="user or organization of the repos")
    data = "images, one folder per class, or a dataset repo folder (default: that of the last `make run`, else synthetic cells)"
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
    """Publish to the Hub of this process, or start the embedded one if there is neither an endpoint nor a token."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        check_folders(arguments.data, arguments.out)
        if arguments.dry_run or "HF_ENDPOINT" in os.environ or get_token():
            publish(arguments)
            return 0
        with embedded_hub(arguments.out, arguments.owner) as hub:
            target = f"the embedded Hub in {hub.root}"
            print(f"No token (hf auth login) and no HF_ENDPOINT: publishing to {target}")
            command = [sys.executable, "-m", "runs.publish", *argv]
            code = subprocess.run(command, env=os.environ | hub.environment).returncode
        if code == 0:
            serve = f"python -m local_hub --root {hub.root} --token {hub.token}:{arguments.owner}"
            print(f"\nServe these repos again: {serve}")
        return code
    except (DatasetError, HubError, NotADirectoryError, RepoError) as error:
        print(f"error: {error}", file=sys.stderr)
    except HUB_ERRORS as error:
        print(f"error: {hub_error_message(error, arguments.owner)}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        return error.returncode  # the command has printed the error
    except KeyboardInterrupt:
        print("stopped: rerun to resume", file=sys.stderr)
        return 130
    return 1


def publish(arguments: argparse.Namespace) -> None:
    """Publish dataset, model, Space and collection, and run the snippets of their cards.

    Raises:
        DatasetError, RepoError, NotADirectoryError, CalledProcessError or one of HUB_ERRORS: it cannot be published.
    """
    from hub_model.push import check_folder  # imports torch

    choose_names(arguments, "any")  # before anything is built
    if not arguments.dry_run:
        check_access(f"{arguments.owner}/{arguments.model_name}")
    dataset = dataset_folder(arguments.data, arguments.out)
    model = model_folder(arguments.model, arguments.out)
    check_contract(dataset)
    check_folder(model)
    card = RepoCard.load(dataset / "README.md", ignore_metadata_errors=True)
    synthetic = "synthetic" in (card.data.get("tags") or [])
    repos = choose_names(arguments, "synthetic-bone-marrow-cells" if synthetic else "bone-marrow-cells")
    if arguments.dry_run:
        return print_plan(repos, dataset, model)
    check_free(repos, arguments.private)
    published = push_all(repos, dataset, model, arguments.private)
    snippets = run_snippets(repos, published)
    urls: dict[str, str] = dict(published)
    if arguments.collection:
        urls["collection"] = collect(repos, arguments.collection, arguments.private)
    print("\nPublished\n")
    for kind, url in urls.items():
        print(f"  {kind:<12}{url}")
    if arguments.private:
        print("\nA Space reads private repos only with a token: add the secret HF_TOKEN in its settings.")
    for snippet in snippets:
        print(f"\n{snippet.rstrip()}")


def print_plan(repos: Repos, dataset: Path, model: Path) -> None:
    """Print each repo's licence, files and sizes."""
    print(f"To {constants.ENDPOINT}:")
    with tempfile.TemporaryDirectory() as built:
        build_space(Path(built), repos["model"], repos["dataset"], repos["space"])
        for (kind, name), folder in zip(repos.items(), (dataset, model, Path(built)), strict=True):
            card = RepoCard.load(folder / "README.md", ignore_metadata_errors=True)
            licence = card.data.get("license") or "no licence in its card"
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sizes = [path.stat().st_size / 1e6 for path in files]
            print(f"\n{kind} {name}: {len(files)} files, {sum(sizes):.1f} MB, {licence}")
            for path, size in zip(files, sizes, strict=True):
                print(f"  {size:10.3f} MB  {path.relative_to(folder)}")


# ---- names
def choose_names(arguments: argparse.Namespace, dataset_name: str) -> Repos:
    """The ids of the repos; RepoError for one that is not valid."""
    names = (arguments.dataset_name or dataset_name, arguments.model_name, arguments.space_name)
    repos = {kind: f"{arguments.owner}/{name}" for kind, name in zip(MARKERS, names, strict=True)}
    for kind, name in repos.items():
        if not is_repo_id(name):
            raise RepoError(
                f"{name!r} is not a repo id for the {kind}: OWNER/NAME of letters, digits, '-', '_' and '.'"
            )
    return repos


def check_free(repos: Repos, private: bool) -> None:
    """Raise RepoError if a repo has other content, which a push would delete, or is public and `private` was asked for."""
    for kind, name in repos.items():
        try:
            info = HfApi().repo_info(name, repo_type=kind)
        except HUB_ERRORS as error:
            if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
                continue
            raise RepoError(hub_error_message(error, name, kind)) from error
        files = {sibling.rfilename for sibling in info.siblings or ()}
        if files - {".gitattributes", "README.md"} and MARKERS[kind] not in files:
            raise RepoError(f"the name is taken: {kind} {name} has other content; pass --{kind}_name")
        check_private(info, private)


# ---- the Hub
def push_all(repos: Repos, dataset: Path, model: Path, private: bool) -> dict[str, Published]:
    """Push the three repos, each after the ones that it reads."""
    from hub_model.push import render_and_push

    dataset_id, model_id, space_id = repos.values()
    links = {"private": private, "model": model_id, "space": space_id}
    pushes: dict[str, Callable[[], Published]] = {
        "dataset": lambda: push_dataset(dataset, dataset_id, **links),
        "model": lambda: render_and_push(model, model_id, private, dataset_id, space_id),
        "space": lambda: push_space(space_id, model_id, dataset_id, private),
    }
    published: dict[str, Published] = {}
    for kind, push in pushes.items():
        try:
            result = published[kind] = push()
        except RepoError as error:
            before = f" (already published: {', '.join(published)})" if published else ""
            raise RepoError(f"{error}{before}") from error
        outcome = f"commit {result.commit[:8]}" if result.changed else "unchanged"
        print(f"{kind} {repos[kind]}: {outcome}", flush=True)
    return published


def collect(repos: Repos, title: str, private: bool) -> str:
    """Add the three repos to the owner's collection with this title; return its URL."""
    api, owner = HfApi(), repos["model"].split("/")[0]
    options = {"namespace": owner, "description": DESCRIPTION, "private": private, "exists_ok": True}
    collection = api.create_collection(title, **options)
    existing = {(item.item_type, item.item_id) for item in collection.items}
    for kind, name in repos.items():
        if (kind, name) not in existing:
            api.add_collection_item(collection.slug, name, kind, exists_ok=True)
    return collection.url


def run_snippets(repos: Repos, published: dict[str, Published]) -> list[str]:
    """Run the snippets of the three cards as on another machine, the Space's only if it is running; return those to print.

    Raises:
        RepoError: a snippet fails.
    """
    from hub_model.card import snippets
    from hub_model.verify import run_isolated, verify

    printed = []
    for kind, name in repos.items():
        path = hf_hub_download(name, "README.md", repo_type=kind, revision=published[kind].commit)
        code = snippets(Path(path).read_text("utf-8"))
        printed += code[: PRINTED[kind]]
        if kind == "space" and HfApi().space_info(name).runtime.stage != "RUNNING":
            print("snippet of the space card: not run, since the Space is not running", flush=True)
            continue
        try:
            if kind == "model":
                verify(name)
            else:
                run_isolated("-c", "\n".join(code))
        except RepoError as error:
            raise RepoError(f"published, but a snippet of the {kind} card fails: {error}") from error
        print(f"snippets of the {kind} card: {len(code)} run", flush=True)
    return printed


if __name__ == "__main__":
    sys.exit(main())
