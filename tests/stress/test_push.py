"""A push through a network that fails: readers see the old repo or the new one, and repeating the command completes the push.

Datasets, models and Spaces are pushed by one function, `push_folder`. Each push goes through `broken_proxy`, which cuts the
connection before, midway through or after a request. The short form breaks the first request, an upload and the commit;
`make stress` breaks every request, as a hiccup and as an outage, and also runs the three commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from hub_model.inference.errors import RepoError
from hub_model.publish import push_folder
from local_hub import LocalHub
from tests.stress.broken_proxy import FAULTS, FOREVER, Proxy, broken_proxy

RELEASE = Path(__file__).resolve().parents[2] / "hub_model" / "release"
http = httpx2.Client()  # shared, since each new client reads the certificates
Files = dict[str, bytes]


@dataclass(frozen=True)
class Versions:
    """Two versions of a repo of one kind."""

    kind: str
    folders: tuple[Path, Path]

    def push(self, version: int, repo: str) -> None:
        push_folder(self.folders[version], repo, self.kind)

    def files(self, version: int) -> Files:
        paths = [path for path in self.folders[version].rglob("*") if path.is_file()]
        return {path.relative_to(self.folders[version]).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(params=["dataset", "model", "space"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Versions:
    """LFS files, one of them the same in both versions, and a card that the Hub validates."""
    for version in (0, 1):
        rng = np.random.default_rng(version)
        for name in ("model.safetensors", "onnx/model.onnx", "figures/same.png", f"only-in-{version}.png"):
            path = tmp_path / str(version) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0" * 100_000 if "same" in name else rng.bytes(100_000))
        card = f"---\nlicense: apache-2.0\nsdk: gradio\n---\n# Version {version}\n"
        (tmp_path / str(version) / "README.md").write_text(card)
    return Versions(request.param, (tmp_path / "0", tmp_path / "1"))


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with broken_proxy(os.environ["HF_ENDPOINT"]) as running:
        yield running


@pytest.fixture
def through_proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Send the pushes of this process through the proxy, and let clients retry without waiting."""

    class NoWaiting:
        sleep = staticmethod(lambda seconds: None)

        def __getattr__(self, name: str) -> object:
            return getattr(time, name)

    monkeypatch.setattr(constants, "ENDPOINT", proxy.endpoint)
    monkeypatch.setattr("huggingface_hub.utils._http.time", NoWaiting())
    proxy.repair()
    return proxy


@dataclass
class Reader:
    """Someone who keeps reading the repo, not through the proxy."""

    hub: LocalHub
    kind: str
    repo: str

    def files(self) -> Files:
        """The current files."""
        page = "" if self.kind == "model" else f"{self.kind}s/"
        info = HfApi(self.hub.endpoint).repo_info(self.repo, repo_type=self.kind)
        url = f"{self.hub.endpoint}/{page}{self.repo}/resolve/{info.sha}"
        names = [sibling.rfilename for sibling in info.siblings]
        files = {name: http.get(f"{url}/{name}").raise_for_status().content for name in names}
        files.pop(".gitattributes")
        return files

    def commits(self) -> list[str]:
        commits = HfApi(self.hub.endpoint).list_repo_commits(self.repo, repo_type=self.kind)
        return [commit.title for commit in commits]

    @contextmanager
    def watching(self) -> Iterator[set[frozenset]]:
        """Collect the states, sets of (path, hash), that are seen while the block runs."""
        seen, done = set(), threading.Event()
        url = f"{self.hub.endpoint}/api/{self.kind}s/{self.repo}?blobs=1"
        headers = {"Authorization": f"Bearer {self.hub.token}"}

        def poll() -> None:
            while not done.is_set():
                siblings = http.get(url, headers=headers).raise_for_status().json()["siblings"]
                seen.add(frozenset((s["rfilename"], s["blobId"]) for s in siblings))
                time.sleep(0.005)

        watcher = threading.Thread(target=poll)
        watcher.start()
        try:
            yield seen
        finally:
            done.set()
            watcher.join()

    def delete(self) -> None:
        HfApi(self.hub.endpoint, token=self.hub.token).delete_repo(self.repo, repo_type=self.kind)


@contextmanager
def published(case: Versions, hub: LocalHub, owner: str) -> Iterator[Reader]:
    """A repo with version 0, deleted at the end."""
    reader = Reader(hub, case.kind, f"{owner}/broken-{uuid.uuid4().hex[:8]}")
    case.push(0, reader.repo)
    try:
        yield reader
    finally:
        reader.delete()


def attempt(case: Versions, repo: str) -> str:
    """Push version 1; return "" or the error message."""
    try:
        case.push(1, repo)
    except RepoError as error:
        assert "\n" not in str(error) and str(error)
        return str(error)
    return ""


def requests_of(case: Versions, hub: LocalHub, owner: str, proxy: Proxy) -> list[str]:
    """The requests of an uninterrupted push of version 1 over version 0."""
    with published(case, hub, owner) as reader:
        proxy.repair()
        assert attempt(case, reader.repo) == ""
        return list(proxy.seen)


def break_and_repeat(
    case: Versions, hub: LocalHub, owner: str, proxy: Proxy, number: int, fault: str, outage: int
) -> str:
    """Push version 1 over the broken network, then over the repaired one; check what must hold and return the outcome."""
    with published(case, hub, owner) as reader:
        old, before = reader.files(), len(reader.commits())
        proxy.break_at(number, fault, outage)
        with reader.watching() as states:
            error = attempt(case, reader.repo)
        files, first = reader.files(), Counter(proxy.uploads)
        new = case.files(1)
        assert files in (old, new), "half a push is visible"
        assert len(states) <= 2, "a reader saw a third state"
        assert error or files == new, "a failed push was reported as done"
        assert len(reader.commits()) == before + (files == new)

        proxy.repair()
        assert attempt(case, reader.repo) == ""
        assert reader.files() == new
        assert len(reader.commits()) == before + 1, "the repeated push made a second commit"
        again = Counter(proxy.uploads)
        assert not set(first) & set(again), "an LFS file was uploaded again"
        assert max(again.values(), default=1) == 1
    return "pushed" if not error else "committed, response lost" if files == new else "refused"


def numbers_of_interest(requests: list[str]) -> list[int]:
    """The first request, the first upload of an LFS file, and the commit."""
    upload = [i for i, line in enumerate(requests, 1) if line.startswith("PUT /lfs-objects/")][:1]
    commit = [i for i, line in enumerate(requests, 1) if line.startswith("POST") and "/commit/" in line]
    assert len(commit) == 1
    return [1, *upload, *commit]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_push_interrupted_at_any_request_can_be_repeated(
    everywhere: bool, case: Versions, hub: LocalHub, owner: str, through_proxy: Proxy, capsys
) -> None:
    """With a network that stays down; `everywhere` also with a hiccup."""
    requests = requests_of(case, hub, owner, through_proxy)
    numbers = range(1, len(requests) + 1) if everywhere else numbers_of_interest(requests)
    outcomes = {
        outage: Counter(
            break_and_repeat(case, hub, owner, through_proxy, number, fault, outage)
            for number in numbers
            for fault in FAULTS
        )
        for outage in (FOREVER // 2, 0)[: 1 + everywhere]
    }
    with capsys.disabled():
        for outage, counts in outcomes.items():
            summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
            print(f"\n{case.kind}, {'outage' if outage else 'hiccup'}, {len(requests)} requests: {summary}")
    down = outcomes[FOREVER // 2]
    assert down["committed, response lost"] == 1
    assert down["refused"] == len(FAULTS) * len(numbers) - 1


@pytest.mark.timeout(1200)
def test_a_concurrent_commit_of_someone_else_is_never_overwritten(
    case: Versions, hub: LocalHub, owner: str, through_proxy: Proxy
) -> None:
    """Their commit comes just before each request of our push, one after the other."""
    requests = requests_of(case, hub, owner, through_proxy)
    refused = 0
    uploads = [i for i, line in enumerate(requests, 1) if "/lfs-objects/" in line]
    for number in sorted(set(range(1, len(requests) + 1)) - set(uploads[1:])):
        with published(case, hub, owner) as reader:
            theirs = HfApi(hub.endpoint, token=hub.token)
            stale = next(name for name in sorted(reader.files()) if name != "README.md")

            def commit(now: int, repo: str = reader.repo, stale: str = stale, number: int = number) -> None:
                if now == number:
                    operations = [
                        CommitOperationAdd("THEIRS.md", b"do not lose this"),
                        CommitOperationDelete(stale, is_folder=False),
                    ]
                    theirs.create_commit(repo, operations, repo_type=case.kind, commit_message="theirs")  # noqa: B023

            through_proxy.repair()
            through_proxy.before_request = commit
            error = attempt(case, reader.repo)
            through_proxy.repair()
            titles = reader.commits()
            assert titles.count("theirs") == 1
            if error:
                refused += 1
                assert "someone else has changed" in error
                assert reader.files()["THEIRS.md"] == b"do not lose this" and stale not in reader.files()
                assert titles[0] == "theirs"
                assert attempt(case, reader.repo) == ""
            else:  # theirs was there before we read the repo, so ours comes after it
                assert titles[1] == "theirs"
            expected = case.files(1)
            pushed = {name: content for name, content in reader.files().items() if name in expected}
            assert pushed == expected
    assert refused >= 3


def test_a_push_is_one_commit_even_with_xet(
    case: Versions, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`upload_folder` commits in batches when Xet is enabled, so no push may use it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("upload_folder makes several commits of a large folder")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    repo = f"{owner}/one-commit-{uuid.uuid4().hex[:8]}"
    case.push(0, repo)
    assert len(HfApi().list_repo_commits(repo, repo_type=case.kind)) == 2


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["dataset", "model", "space"])
def test_an_interrupted_command_prints_one_sentence_and_succeeds_when_repeated(
    kind: str, hub: LocalHub, owner: str, proxy: Proxy, drawn_dataset: Path
) -> None:
    """`python -m … push` in subprocesses, with the response to the commit lost; the model is the released one."""
    repo = f"{owner}/command-{uuid.uuid4().hex[:8]}"
    arguments = {
        "dataset": ["dataset_script", "push", str(drawn_dataset), repo],
        "model": ["hub_model", "push", str(RELEASE), repo],
        "space": ["space", "push", repo, "--model", f"{owner}/any", "--dataset", f"{owner}/any"],
    }[kind]
    for of in ("model", "dataset"):  # what the Space reads
        HfApi().create_repo(f"{owner}/any", repo_type=of, exist_ok=True)

    def run() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HF_ENDPOINT": proxy.endpoint}
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    def commit_number() -> int:
        return next(i for i, line in enumerate(proxy.seen, 1) if f"{repo}/commit/" in line)

    reader = Reader(hub, kind, repo)
    proxy.break_at(1, "before", FOREVER // 2)
    first = run()
    assert first.returncode == 1 and "Traceback" not in first.stderr and first.stderr.count("\n") == 1
    proxy.repair()
    assert run().returncode == 0
    uploads, number = Counter(proxy.uploads), commit_number()
    assert max(uploads.values(), default=1) == 1
    reader.delete()
    proxy.break_at(number, "after")
    lost = run()
    assert lost.returncode == 1 and "Traceback" not in lost.stderr
    proxy.repair()
    repeated = run()
    assert repeated.returncode == 0, repeated.stderr
    assert len(reader.commits()) == 2 and proxy.uploads == []
