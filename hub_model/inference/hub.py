"""What every talk with the Hub shares: ids, the download of a model repo, and refusals as one sentence.

A local folder needs none of it, so `import hub_model` and a `Classifier` of a folder start without the Hub's client.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hub_model.inference.errors import RepoError, first_line

try:
    import httpx2
except ImportError:  # huggingface_hub 1 is built on its forerunner
    import httpx as httpx2

HUB_ERRORS = (OSError, httpx2.HTTPError, HFValidationError)  # what huggingface_hub raises; most are OSErrors


def is_repo_id(name: str) -> bool:
    """Whether it is an `OWNER/NAME` that a Hub takes."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def list_model_files(repo_id: str, revision: str | None) -> list[str]:
    """The files of a model repo; none where no Hub answers. RepoError where it may not be read."""
    try:
        siblings = HfApi().model_info(repo_id, revision=revision).siblings
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise RepoError(hub_refusal(error, repo_id, "model", revision)) from None
    except HUB_ERRORS:
        return []  # an earlier download, if there is one, will do
    return [sibling.rfilename for sibling in siblings or []]


def download_model(repo_id: str, revision: str | None, files: list[str]) -> tuple[Path, str]:
    """The folder and the commit of a model repo, from the cache where it holds that commit or no Hub answers."""
    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=files)
    except HUB_ERRORS as error:
        raise RepoError(hub_refusal(error, repo_id, "model", revision)) from None
    return Path(folder), Path(folder).name


def hub_refusal(
    error: BaseException,
    repo_id: str,
    kind: str = "model",
    revision: str | None = None,
    writing: bool = False,
) -> str:
    """What a failed request to the Hub means, as one sentence that says what would be right."""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__  # an upload that fails is a RuntimeError around the Hub's answer
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is neither a folder nor a repo id (OWNER/NAME)"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no Hub token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OSError) and error.filename and not isinstance(error, HfHubHTTPError):
        return f"{error.filename}: {error.strerror or first_line(error)}"
    if not isinstance(error, HfHubHTTPError):
        return (
            f"the Hub at {constants.ENDPOINT} cannot be reached for {repo_id} ({type(error).__name__}): check the "
            "network and HF_ENDPOINT, then run the command again"
        )
    status, said = error.response.status_code, " ".join((error.server_message or "").split())
    if isinstance(error, RevisionNotFoundError):
        return f"the {kind} repo {repo_id} has no revision {revision!r}"
    if isinstance(error, GatedRepoError):
        return (
            f"the {kind} repo {repo_id} is gated: ask for access on its page, and log in with `hf auth login`"
        )
    if status == 401 and (writing or not isinstance(error, RepositoryNotFoundError)):
        return f"the Hub at {constants.ENDPOINT} takes no such token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {kind} repo {repo_id} that may be read with this token"
    if status == 403:
        return f"the token may not write to {repo_id}, use one with write access ({said or 'forbidden'})"
    if status == 409:
        return f"the name {repo_id} is taken ({said or 'conflict'}): choose another"
    if status == 412:
        return f"someone else has changed {repo_id} meanwhile: look at it, then push again"
    if status == 429:
        return f"the Hub's rate limit is reached: wait {_seconds_to_wait(error)}, then run the command again"
    hint = ": run the command again later" if status >= 500 else ""
    return f"the Hub refused {repo_id} with status {status} ({said or type(error).__name__}){hint}"


def _seconds_to_wait(error: HfHubHTTPError) -> str:
    seconds = error.response.headers.get("Retry-After", "")
    return f"{seconds} seconds" if seconds.isdecimal() else "a few minutes"
