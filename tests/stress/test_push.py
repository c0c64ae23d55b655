"""A push through a network that breaks: readers see the old repo or the new one, and the same command again ends it well.

Datasets, models and Spaces are pushed by one function, `push_folder`. Each push goes through `broken_proxy`, which cuts the
connection before, midway through or after a request. The short form breaks the first request, an upload and the commit;
`make stress` breaks every request, as a hiccup and as an outage, and runs the three commands.
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
web = httpx2.Client()  # one for all: each would read the certificates again
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
    """Large files, one of them the same in both versions, and a card that the Hub validates."""
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
    """The pushes of this process go through the proxy, and clients do not wait before they try again."""

    class NoWaiting:
        sleep = staticmethod(lambda seconds: None)

        def __getattr__(self, name: str) -> object:
            return getattr(time, name)

    monkeypatch.setattr(constants, "ENDPOINT", proxy.endpoint)
    monkeypatch.setattr("huggingface_hub.utils._http.time", NoWaiting())
    proxy.mend()
    return proxy


@dataclass
class Reader:
    """Somebody who looks at the repo all the time, not through the proxy."""

    hub: LocalHub
    kind: str
    repo: str

    def files(self) -> Files:
        """Every file as it is served now."""
        page = "" if self.kind == "model" else f"{self.kind}s/"
        info = HfApi(self.hub.endpoint).repo_info(self.repo, repo_type=self.kind)
        found = {}
        for name in (sibling.rfilename for sibling in info.siblings):
            answer = web.get(f"{self.hub.endpoint}/{page}{self.repo}/resolve/{info.sha}/{name}")
            found[name] = answer.raise_for_status().content
        found.pop(".gitattributes")
        return found

    def commits(self) -> list[str]:
        found = HfApi(self.hub.endpoint).list_repo_commits(self.repo, repo_type=self.kind)
        return [commit.title for commit in found]

    @contextmanager
    def watching(self) -> Iterator[set[frozenset]]:
        """Collect the different states (path, content id) that are seen while the block runs."""
        seen, done = set(), threading.Event()
        url = f"{self.hub.endpoint}/api/{self.kind}s/{self.repo}?blobs=1"
        headers = {"Authorization": f"Bearer {self.hub.token}"}

        def look() -> None:
            while not done.is_set():
                siblings = web.get(url, headers=headers).raise_for_status().json()["siblings"]
                seen.add(frozenset((s["rfilename"], s["blobId"]) for s in siblings))
                time.sleep(0.005)

        watcher = threading.Thread(target=look)
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
    """A repo that holds version 0; gone at the end."""
    reader = Reader(hub, case.kind, f"{owner}/broken-{uuid.uuid4().hex[:8]}")
    case.push(0, reader.repo)
    try:
        yield reader
    finally:
        reader.delete()


def attempt(case: Versions, repo: str) -> str:
    """Push version 1; "" or the sentence that says why not."""
    try:
        case.push(1, repo)
    except RepoError as error:
        assert "\n" not in str(error) and str(error)
        return str(error)
    return ""


def requests_of(case: Versions, hub: LocalHub, owner: str, proxy: Proxy) -> list[str]:
    """The requests of an undisturbed push of version 1 over version 0."""
    with published(case, hub, owner) as reader:
        proxy.mend()
        assert attempt(case, reader.repo) == ""
        return list(proxy.seen)


def break_and_repeat(
    case: Versions, hub: LocalHub, owner: str, proxy: Proxy, number: int, fault: str, outage: int
) -> str:
    """Push version 1 over a broken network and again over a sound one, and check all that must hold; the outcome."""
    with published(case, hub, owner) as reader:
        old, before = reader.files(), len(reader.commits())
        proxy.break_at(number, fault, outage)
        with reader.watching() as states:
            said = attempt(case, reader.repo)
        arrived, first = reader.files(), Counter(proxy.uploads)
        new = case.files(1)
        assert arrived in (old, new), "half a push is to be seen"
        assert len(states) <= 2, "a reader saw a third state"
        assert said or arrived == new, "a push that failed called itself done"
        assert len(reader.commits()) == before + (arrived == new)

        proxy.mend()
        assert attempt(case, reader.repo) == ""
        assert reader.files() == new
        assert len(reader.commits()) == before + 1, "the repeated push made a second commit"
        again = Counter(proxy.uploads)
        assert not set(first) & set(again), "a large file was sent again that was there already"
        assert max(again.values(), default=1) == 1
    return "went through" if not said else "commit landed, reply lost" if arrived == new else "refused"


def numbers_of_interest(requests: list[str]) -> list[int]:
    """The first request, the first upload of a large file, and the commit."""
    upload = [i for i, line in enumerate(requests, 1) if line.startswith("PUT /lfs-objects/")][:1]
    commit = [i for i, line in enumerate(requests, 1) if line.startswith("POST") and "/commit/" in line]
    assert len(commit) == 1
    return [1, *upload, *commit]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_push_cut_at_any_request_is_repeated_without_harm(
    everywhere: bool, case: Versions, hub: LocalHub, owner: str, through_proxy: Proxy, capsys
) -> None:
    """Once with a network that stays down, and everywhere with a hiccup, too."""
    requests = requests_of(case, hub, owner, through_proxy)
    places = range(1, len(requests) + 1) if everywhere else numbers_of_interest(requests)
    outcomes = {
        outage: Counter(
            break_and_repeat(case, hub, owner, through_proxy, number, fault, outage)
            for number in places
            for fault in FAULTS
        )
        for outage in (FOREVER // 2, 0)[: 1 + everywhere]
    }
    with capsys.disabled():
        for outage, found in outcomes.items():
            told = ", ".join(f"{number} {what}" for what, number in sorted(found.items()))
            print(f"\n{case.kind}, {'then down' if outage else 'a hiccup'}, {len(requests)} requests: {told}")
    down = outcomes[FOREVER // 2]
    assert down["commit landed, reply lost"] == 1
    assert down["refused"] == len(FAULTS) * len(places) - 1


@pytest.mark.timeout(1200)
def test_a_commit_of_someone_else_between_our_read_and_ours_is_never_overwritten(
    case: Versions, hub: LocalHub, owner: str, through_proxy: Proxy
) -> None:
    """Their commit comes just before each request of our push in turn."""
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

            through_proxy.mend()
            through_proxy.meanwhile = commit
            said = attempt(case, reader.repo)
            through_proxy.mend()
            titles = reader.commits()
            assert titles.count("theirs") == 1
            if said:
                refused += 1
                assert "someone else has changed" in said
                assert reader.files()["THEIRS.md"] == b"do not lose this" and stale not in reader.files()
                assert titles[0] == "theirs"
                assert attempt(case, reader.repo) == ""
            else:  # theirs was there before we looked: ours comes after it
                assert titles[1] == "theirs"
            expected = case.files(1)
            left = {name: content for name, content in reader.files().items() if name in expected}
            assert left == expected
    assert refused >= 3


def test_a_push_is_one_commit_even_where_xet_would_cut_it_into_several(
    case: Versions, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`upload_folder` commits in batches when Xet is on, so no push may go through it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("upload_folder makes several commits of a large folder")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    repo = f"{owner}/one-commit-{uuid.uuid4().hex[:8]}"
    case.push(0, repo)
    assert len(HfApi().list_repo_commits(repo, repo_type=case.kind)) == 2


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["dataset", "model", "space"])
def test_the_commands_themselves_end_with_a_sentence_and_finish_when_repeated(
    kind: str, hub: LocalHub, owner: str, proxy: Proxy, drawn_dataset: Path
) -> None:
    """`python -m … push` in processes of their own, the reply to the commit lost; the released model is the model."""
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
    proxy.mend()
    assert run().returncode == 0
    uploads, number = Counter(proxy.uploads), commit_number()
    assert max(uploads.values(), default=1) == 1
    reader.delete()
    proxy.break_at(number, "after")
    lost = run()
    assert lost.returncode == 1 and "Traceback" not in lost.stderr
    proxy.mend()
    repeated = run()
    assert repeated.returncode == 0, repeated.stderr
    assert len(reader.commits()) == 2 and proxy.uploads == []
