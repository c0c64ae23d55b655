"""Repos as plain files: commits, references and contents.

    ROOT/{models,datasets,spaces}/OWNER/NAME/
        repo.json            {"private", "sdk", "createdAt"}
        refs.json            {"heads/main": commit, "tags/v1": commit}
        commits/SHA1.json    {"parent", "date", "author", "title", "message", "files": {path: {"oid", "size", "sha256"}}}
        blobs/GIT_SHA1       contents of regular files
        lfs/SHA256           contents of LFS files
    ROOT/.incoming/          temporary files, deleted at start

A commit writes contents, then `commits/SHA1.json`, then replaces `refs.json`, each by renaming a file: if the process is
killed, readers see either the old commit or the new one. A path inside a repo is a key in a JSON file, never a path on
this disk; it is validated to protect whoever downloads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

KINDS = ("models", "datasets", "spaces")
NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?(?<!\.git)")
REF_NAME = re.compile(r"(?!.*(?:\.\.|//|@\{))(?![/.-])[^\s~^:?*\[\\\x00-\x20\x7f\ud800-\udfff]+(?<![/.])")
# .gitattributes of a new repo on the Hub
LFS_SUFFIXES = """7z arrow avro bin bz2 ckpt ftz gz h5 joblib lz4 mds mlmodel model msgpack npy npz onnx ot parquet pb
    pickle pkl pt pth rar safetensors tar tflite tgz wasm xz zip zst""".split()  # noqa: SIM905
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)


class HubError(Exception):
    """An error response: HTTP status, message (one sentence), and the Hub's `X-Error-Code` if it has one for this case."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class File:
    """A file of a commit. `oid` is its git SHA-1, or that of its LFS pointer if it is an LFS file (with `sha256`)."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def lfs_fields(self, name: str) -> dict[str, Any]:
        """The `lfs` field of a file's entry, with its SHA-256 under `name`; empty for a regular file."""
        if self.sha256 is None:
            return {}
        pointer_size = len(lfs_pointer(self.sha256, self.size))
        return {"lfs": {name: self.sha256, "size": self.size, "pointerSize": pointer_size}}


@dataclass(frozen=True)
class Commit:
    parent: str | None
    date: str
    author: str
    title: str
    message: str
    files: dict[str, File]


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def object_id(text: str) -> str:
    """An id of the form that the Hub's database uses, derived from `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def checked_path(path: str) -> str:
    """Return `path`; HubError 400 if it is absolute or has `.`, `..`, `.git`, backslashes, controls or surrogates."""
    reserved = {"", ".", "..", ".git"} & set(path.split("/"))
    if reserved or re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", path):
        raise HubError(400, f"invalid path in repo: {path!r}")
    return path


class Storage:
    """The repos below `root`. `LocalHub` locks the folder, so that only one process uses it."""

    def __init__(self, root: Path):
        self.root, self.incoming, self.lock = root, root / ".incoming", threading.RLock()
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir(parents=True)

    @contextmanager
    def new_file(self, target: Path) -> Iterator[BinaryIO]:
        """A temporary file, renamed to `target` if the block succeeds; FileNotFoundError if its repo has been deleted."""
        with tempfile.NamedTemporaryFile(dir=self.incoming, delete=False) as file:
            try:
                yield file
                file.flush()
                target.parent.mkdir(exist_ok=True)
                os.replace(file.name, target)
            finally:
                Path(file.name).unlink(missing_ok=True)

    def write(self, target: Path, data: bytes) -> None:
        with self.new_file(target) as file:
            file.write(data)

    def repositories(self, kind: str) -> list[Repository]:
        folders = sorted(path.parent for path in (self.root / kind).glob("*/*/repo.json"))
        return [Repository(self, kind, f"{folder.parent.name}/{folder.name}") for folder in folders]

    def repository(self, kind: str, owner: str, name: str) -> Repository:
        """The repo, which need not exist (`.exists()`); HubError 400 for a name that the Hub would refuse."""
        reserved = owner in (*KINDS, "api")  # these have another meaning at the start of a URL
        if kind not in KINDS or reserved or not (NAME.fullmatch(owner) and NAME.fullmatch(name)):
            raise HubError(400, f"invalid repository type or name: {kind} {owner}/{name}")
        return Repository(self, kind, f"{owner}/{name}")

    def create(self, repo: Repository, settings: dict[str, Any], author: str) -> None:
        """Create a repo with its initial commit in one rename; HubError 409 if it exists."""
        with self.lock:
            if repo.exists():
                raise HubError(409, f"You already created this {repo.kind[:-1]} repo: {repo.id}")
            draft = Repository(self, repo.kind, repo.id, Path(tempfile.mkdtemp(dir=self.incoming)))
            created = {**settings, "createdAt": timestamp()}
            self.write(draft.folder / "repo.json", json.dumps(created).encode())
            files = {".gitattributes": draft.add_blob(GITATTRIBUTES.encode())}
            first = draft.add_commit(Commit(None, timestamp(), author, "initial commit", "", files))
            draft.write_refs({"heads/main": first})
            repo.folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(draft.folder, repo.folder)

    def delete(self, repo: Repository) -> None:
        """Delete a repo in one rename; HubError 404 if there is none."""
        with self.lock:
            if not repo.exists():
                raise HubError(404, "Repository not found", "RepoNotFound")
            trash = Path(tempfile.mkdtemp(dir=self.incoming))
            os.rename(repo.folder, trash / "repo")
        shutil.rmtree(trash)


class Repository:
    def __init__(self, storage: Storage, kind: str, repo_id: str, folder: Path | None = None):
        self.storage, self.kind, self.id = storage, kind, repo_id
        self.folder = folder or storage.root / kind / repo_id

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def exists(self) -> bool:
        return (self.folder / "repo.json").is_file()

    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "repo.json").read_bytes())

    def update_settings(self, **changes: Any) -> None:
        with self.storage.lock:
            self.storage.write(self.folder / "repo.json", json.dumps({**self.settings(), **changes}).encode())

    # ---- references
    def refs(self) -> dict[str, str]:
        return json.loads((self.folder / "refs.json").read_bytes())

    def write_refs(self, refs: dict[str, str]) -> None:
        self.storage.write(self.folder / "refs.json", json.dumps(refs, sort_keys=True).encode())

    def find_ref(self, refs: dict[str, str], revision: str, groups: tuple[str, ...]) -> str | None:
        """The key of `refs` for a revision such as `main`, `v1` or `refs/heads/main`; None without a match."""
        full = [revision.removeprefix("refs/")] if revision.startswith("refs/") else []
        return next((ref for ref in full + [f"{group}/{revision}" for group in groups] if ref in refs), None)

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag or (abbreviated) commit id, or HubError 404."""
        refs = self.refs()
        if ref := self.find_ref(refs, revision, ("heads", "tags")):
            return refs[ref]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            matches = list((self.folder / "commits").glob(f"{revision}*.json"))
            if len(matches) == 1:
                return matches[0].stem
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def create_ref(self, ref: str, commit: str) -> None:
        name = ref.split("/", 1)[1]
        if not REF_NAME.fullmatch(name):
            raise HubError(400, f"invalid name for a branch or tag: {name!r}")
        with self.storage.lock:
            if ref in (refs := self.refs()):
                raise HubError(409, f"Reference refs/{ref} already exists")
            self.write_refs({**refs, ref: commit})

    def delete_ref(self, ref: str) -> None:
        if ref == "heads/main":
            raise HubError(403, "the branch 'main' cannot be deleted")
        with self.storage.lock:
            refs = self.refs()
            if refs.pop(ref, None) is None:
                raise HubError(404, f"no reference refs/{ref}", "RevisionNotFound")
            self.write_refs(refs)

    # ---- commits
    def commit(self, sha: str) -> Commit:
        data = json.loads((self.folder / "commits" / f"{sha}.json").read_bytes())
        return Commit(**{**data, "files": {path: File(**file) for path, file in data["files"].items()}})

    def history(self, sha: str | None) -> Iterator[tuple[str, Commit]]:
        """(commit id, commit) from `sha` back to the initial commit."""
        while sha:
            commit = self.commit(sha)
            yield sha, commit
            sha = commit.parent

    def add_commit(self, commit: Commit) -> str:
        data = json.dumps(asdict(commit), sort_keys=True).encode()
        sha = hashlib.sha1(data).hexdigest()
        self.storage.write(self.folder / "commits" / f"{sha}.json", data)
        return sha

    # ---- contents
    def add_blob(self, data: bytes) -> File:
        file = File(git_oid(data), len(data))
        if not self.content(file).exists():
            self.storage.write(self.content(file), data)
        return file

    def lfs_file(self, sha256: str) -> File | None:
        """The LFS object with this SHA-256, or None if its upload has not been completed."""
        stored = self.folder / "lfs" / sha256
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not stored.is_file():
            return None
        size = stored.stat().st_size
        return File(git_oid(lfs_pointer(sha256, size)), size, sha256)

    def content(self, file: File) -> Path:
        return self.folder / "lfs" / file.sha256 if file.sha256 else self.folder / "blobs" / file.oid

    def read(self, commit: Commit, path: str) -> str:
        """The text of a file of a commit; empty if there is none."""
        file = commit.files.get(path)
        return self.content(file).read_text("utf-8", "replace") if file else ""
