"""Access to the Hub: repo ids, the download of a model repo, and error messages for failed requests.

Not imported for a local folder: `import hub_model` and a `Classifier` of a folder start without `huggingface_hub`.
"""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hub_model.inference.errors import first_line

try:
    import httpx2
except ImportError:  # huggingface_hub 1 uses its predecessor
    import httpx as httpx2

HUB_ERRORS = (OSError, httpx2.HTTPError, HFValidationError)  # raised by huggingface_hub; most are OSErrors
# the repo does not exist or cannot be read: a cached copy is not used instead
NO_ACCESS = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)


def is_repo_id(name: str) -> bool:
    """Whether it is a valid repo id, `OWNER/NAME`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def hub_error_message(
    error: BaseException,
    repo_id: str,
    kind: str = "model",
    revision: str | None = None,
    writing: bool = False,
) -> str:
    """The error message for a failed request to the Hub: one sentence with the cause and, where there is one, the remedy."""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__  # a failed upload is a RuntimeError that wraps the Hub's response
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is neither a folder nor a repo id (OWNER/NAME)"
    if isinstance(error, LocalTokenNotFoundError):
        return "no Hub token found: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OSError) and error.filename and not isinstance(error, HfHubHTTPError):
        return f"{error.filename}: {error.strerror or first_line(error)}"
    if not isinstance(error, HfHubHTTPError):
        return (
            f"the Hub at {constants.ENDPOINT} cannot be reached for {repo_id} ({type(error).__name__}): check the "
            "network and HF_ENDPOINT, then run the command again"
        )
    status, message = error.response.status_code, " ".join((error.server_message or "").split())
    if isinstance(error, RevisionNotFoundError):
        return f"the {kind} repo {repo_id} has no revision {revision!r}"
    if isinstance(error, GatedRepoError):
        return f"the {kind} repo {repo_id} is gated: ask for access on its page, then run `hf auth login`"
    if status == 401 and (writing or not isinstance(error, RepositoryNotFoundError)):
        return f"the Hub at {constants.ENDPOINT} rejects this token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {kind} repo {repo_id}, or this token cannot read it"
    if status == 403:
        return f"the token may not write to {repo_id}, use one with write access ({message or 'forbidden'})"
    if status == 409:
        return f"the name {repo_id} is taken ({message or 'conflict'}): choose another"
    if status == 412:
        return f"someone else has changed {repo_id} meanwhile: check the changes, then push again"
    if status == 429:
        seconds = error.response.headers.get("Retry-After", "")
        delay = f"{seconds} seconds" if seconds.isdecimal() else "a few minutes"
        return f"the Hub's rate limit is reached: wait {delay}, then run the command again"
    hint = ": run the command again later" if status >= 500 else ""
    return f"the Hub refused {repo_id} with status {status} ({message or type(error).__name__}){hint}"
