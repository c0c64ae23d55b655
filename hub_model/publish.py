"""Publish a folder as a dataset, model or Space repo, in one commit, to the Hub at `HF_ENDPOINT`."""

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
from hub_model.inference.hub import HUB_ERRORS, hub_error_message, is_repo_id
from hub_model.inference.model_repo import unsafe_files

RepoType = Literal["model", "dataset", "space"]
PUSH_ERRORS = (*HUB_ERRORS, RuntimeError)  # RuntimeError: the upload of a large file failed


class Published(str):
    """The URL of a repo, its current `commit`, and whether the push created that commit (`changed`)."""

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
    """Make a repo equal to a folder in one commit, and create it if it does not exist; without changes, nothing is committed.

    A reader sees the repo before or after the commit, never in between. A repo or branch created for a push that fails is
    deleted again.

    Args:
        private: create the repo private; refused if it exists and is public.
        revision: branch to commit to, created if it does not exist; default main.
        stale: patterns of remote files to delete if the folder lacks them; `.gitattributes` always stays.
        token: access token; default the locally stored one.

    Raises:
        RepoError: invalid repo id, unsafe file, no token, or a Hub that refuses the push or cannot be reached.
    """
    check_repo_id(repo_id)
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    if unsafe := unsafe_files(files):
        raise RepoError(f"{folder / unsafe[0]} can hold a pickle: only safetensors are published")
    api, repo = HfApi(token=token), {"repo_id": repo_id, "repo_type": repo_type}
    with contextlib.ExitStack() as undo:
        try:
            try:
                check_private(api.repo_info(**repo), private)
            except RepositoryNotFoundError:
                card = metadata_load(folder / "README.md") if repo_type == "space" else None
                api.create_repo(**repo, private=private or None, space_sdk=(card or {}).get("sdk"))
                undo.callback(_delete, api, repo, api.repo_info(**repo).sha)
            if revision and not any(ref.name == revision for ref in api.list_repo_refs(**repo).branches):
                api.create_branch(**repo, branch=revision)
                undo.callback(_delete, api, repo, api.repo_info(**repo, revision=revision).sha, revision)
            parent = api.repo_info(**repo, revision=revision).sha
            others = set(api.list_repo_files(**repo, revision=parent)) - set(files) - {".gitattributes"}
            deleted = sorted(name for name in others if any(fnmatch.fnmatchcase(name, p) for p in stale))
            commit = api.create_commit(  # `upload_folder` would split a large folder into several commits
                **repo,
                operations=[CommitOperationDelete(name, is_folder=False) for name in deleted]
                + [CommitOperationAdd(name, path) for name, path in files.items()],
                commit_message=message,
                revision=revision,
                parent_commit=parent,  # the Hub refuses the commit if someone else has committed since
            )
        except PUSH_ERRORS as error:
            raise RepoError(hub_error_message(error, repo_id, repo_type, revision, writing=True)) from error
        undo.pop_all()
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(repo_type, "")
    published = Published(f"{api.endpoint}/{prefix}{repo_id}")
    published.commit, published.changed = commit.oid, commit.oid != parent
    return published


def check_repo_id(name: str) -> None:
    """Raise RepoError unless `name` is `OWNER/NAME`."""
    if not is_repo_id(name):
        raise RepoError(f"{name!r} is not a repo id (OWNER/NAME)")


def check_private(info: ModelInfo | DatasetInfo | SpaceInfo, private: bool) -> None:
    """Raise RepoError if `private` is set but the repo is public: a push does not change its visibility."""
    if private and not info.private:
        raise RepoError(f"{info.id} is public: make it private in its settings, or push without --private")


def _delete(api: HfApi, repo: dict[str, str], commit: str, branch: str | None = None) -> None:
    """Delete a repo or branch that the push created, unless someone else has committed to it since."""
    with contextlib.suppress(*PUSH_ERRORS):
        if api.repo_info(**repo, revision=branch).sha != commit:
            return
        if branch:
            api.delete_branch(**repo, branch=branch)
        else:
            api.delete_repo(**repo)


def check_access(repo_id: str) -> None:
    """Check, before long work, that the local token can write to a repo.

    Raises:
        RepoError: invalid repo id, no token, a read-only token, or a token without access to the owner.
    """
    check_repo_id(repo_id)
    try:
        user = HfApi().whoami()
    except HUB_ERRORS as error:
        raise RepoError(hub_error_message(error, repo_id, writing=True)) from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RepoError("the token is read-only: run `hf auth login` with one that has write access")
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    owner = repo_id.partition("/")[0]
    if owner not in owners:
        raise RepoError(
            f"{repo_id} belongs to {owner}, the token to {', '.join(owners)}: choose one of these as owner"
        )


def links(endpoint: str = constants.ENDPOINT, **repos: str | None) -> str:
    """Return Markdown links to repos by type, without those that are None: `links(model="OWNER/NAME", dataset=None)`."""
    return " · ".join(
        f"[{kind.capitalize()}: {name}]({endpoint}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{name})"
        for kind, name in repos.items()
        if name
    )


def find_repo(repo_id: str, repo_type: RepoType, revision: str | None = None):
    """Return the Hub's info about a repo; RepoError if there is none of that type or it may not be read."""
    check_repo_id(repo_id)
    api = HfApi()
    try:
        return api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except HUB_ERRORS as error:
        refusal = hub_error_message(error, repo_id, repo_type, revision)
        if isinstance(error, RepositoryNotFoundError):
            for other in {"model", "dataset", "space"} - {repo_type}:
                with contextlib.suppress(*HUB_ERRORS):
                    api.repo_info(repo_id, repo_type=other)
                    refusal = f"{repo_id} is a {other} repo, not a {repo_type} repo"
        raise RepoError(refusal) from error
