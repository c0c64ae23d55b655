"""A folder in, one commit on the Hub out: how datasets, models and Spaces are published. `HF_ENDPOINT` says which Hub."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetInfo,
    HfApi,
    ModelInfo,
    SpaceInfo,
    constants,
    metadata_load,
)
from huggingface_hub.errors import RepositoryNotFoundError

from hub_model.inference.errors import RepoError
from hub_model.inference.hub import HUB_ERRORS, hub_refusal, is_repo_id
from hub_model.inference.model_repo import unsafe_files

RepoType = Literal["model", "dataset", "space"]
PUSH_ERRORS = (*HUB_ERRORS, RuntimeError)  # RuntimeError: a large file that was not taken


class Published(str):
    """The address of a repo; `commit` is what it holds now, `changed` whether that is a new commit."""

    commit: str
    changed: bool


def push_folder(
    folder: Path,
    repo_id: str,
    repo_type: RepoType,
    private: bool = False,
    message: str = "Publish",
    *,
    revision: str | None = None,
    stale: Iterable[str] = ("*",),
    token: str | None = None,
) -> Published:
    """Make a repo equal to a folder in one commit, creating it if need be; the same content makes no commit.

    Readers see the old repo or the new one. A repo or branch that was created for a push that then fails is
    deleted again.

    Args:
        private: create it private; refused for a repo that is public.
        revision: branch to commit to, created if need be; default main.
        stale: patterns of files that are deleted where the folder lacks them; `.gitattributes` always stays.
        token: of whoever publishes; default that of this machine.

    Raises:
        RepoError: in one sentence: a wrong id, an unsafe file, no token, or a Hub that refuses or cannot be reached.
    """
    if not is_repo_id(repo_id):
        raise RepoError(f"{repo_id!r} is not a repo id (OWNER/NAME)")
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    if unsafe := unsafe_files(files):
        raise RepoError(f"{folder / unsafe[0]} can hold a pickle: only safetensors are published")
    api, where = HfApi(token=token), {"repo_id": repo_id, "repo_type": repo_type}
    with contextlib.ExitStack() as undo:
        try:
            if _create(api, where, folder, private):
                start = api.repo_info(**where).sha
                undo.callback(_delete, api, where, start)
            if revision and not any(ref.name == revision for ref in api.list_repo_refs(**where).branches):
                api.create_branch(**where, branch=revision)
                undo.callback(_delete, api, where, api.repo_info(**where, revision=revision).sha, revision)
            parent = api.repo_info(**where, revision=revision).sha
            there = set(api.list_repo_files(**where, revision=parent)) - set(files) - {".gitattributes"}
            gone = sorted(name for name in there if any(fnmatch.fnmatchcase(name, p) for p in stale))
            done = api.create_commit(  # `upload_folder` would cut a large folder into several commits
                **where,
                operations=[CommitOperationDelete(name, is_folder=False) for name in gone]
                + [CommitOperationAdd(name, path) for name, path in files.items()],
                commit_message=message,
                revision=revision,
                parent_commit=parent,  # someone else's commit in between is refused, not overwritten
            )
        except PUSH_ERRORS as error:
            raise RepoError(hub_refusal(error, repo_id, repo_type, revision, writing=True)) from error
        undo.pop_all()
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(repo_type, "")
    published = Published(f"{api.endpoint}/{prefix}{repo_id}")
    published.commit, published.changed = done.oid, done.oid != parent
    return published


def _create(api: HfApi, where: dict[str, str], folder: Path, private: bool) -> bool:
    """Create the repo if there is none, and say so; RepoError where a public one should be private."""
    try:
        info = api.repo_info(**where)
    except RepositoryNotFoundError:
        card = folder / "README.md"
        sdk = (metadata_load(card) or {}).get("sdk") if where["repo_type"] == "space" else None
        api.create_repo(**where, private=private or None, space_sdk=sdk)
        return True
    refuse_public(info, private)
    return False


def refuse_public(info: ModelInfo | DatasetInfo | SpaceInfo, private: bool) -> None:
    """Raise RepoError for a public repo where a private one is wanted: a push does not change that."""
    if private and not info.private:
        raise RepoError(f"{info.id} is public: make it private in its settings, or push without --private")


def _delete(api: HfApi, where: dict[str, str], commit: str, branch: str | None = None) -> None:
    """Delete a repo or branch that this push created, unless someone has committed to it since."""
    with contextlib.suppress(*PUSH_ERRORS):
        if api.repo_info(**where, revision=branch).sha != commit:
            return
        if branch:
            api.delete_branch(**where, branch=branch)
        else:
            api.delete_repo(**where)


def check_access(repo_id: str) -> None:
    """Find out before long work that a repo cannot be written to.

    Raises:
        RepoError: the name is not a repo id, there is no token, it only reads, or it is not one of the repo's owner.
    """
    if not is_repo_id(repo_id):
        raise RepoError(f"{repo_id!r} is not a repo id (OWNER/NAME)")
    try:
        user = HfApi().whoami()
    except HUB_ERRORS as error:
        raise RepoError(hub_refusal(error, repo_id, writing=True)) from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RepoError("the token only reads: run `hf auth login` with one that has write access")
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    owner = repo_id.partition("/")[0]
    if owner not in owners:
        raise RepoError(f"{repo_id} belongs to {owner}, the token to {', '.join(owners)}: name one of theirs")


def links(endpoint: str = constants.ENDPOINT, **repos: str | None) -> str:
    """Return Markdown links to the repos that belong together: `links(model="OWNER/NAME", dataset=None)`."""
    return " · ".join(
        f"[{kind.capitalize()}: {name}]({endpoint}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{name})"
        for kind, name in repos.items()
        if name
    )


def find_repo(repo_id: str, repo_type: RepoType, revision: str | None = None):
    """Return what the Hub says about a repo; RepoError where there is none of that type, or it may not be read."""
    if not is_repo_id(repo_id):
        raise RepoError(f"{repo_id!r} is not a repo id (OWNER/NAME)")
    api = HfApi()
    try:
        return api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except HUB_ERRORS as error:
        refusal = hub_refusal(error, repo_id, repo_type, revision)
        if isinstance(error, RepositoryNotFoundError):
            for other in {"model", "dataset", "space"} - {repo_type}:
                with contextlib.suppress(*HUB_ERRORS):
                    api.repo_info(repo_id, repo_type=other)
                    refusal = f"{repo_id} is a {other} repo, not a {repo_type} repo"
        raise RepoError(refusal) from error
