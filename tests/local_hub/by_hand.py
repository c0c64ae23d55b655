"""Requests by hand, for what the clients would not send, and a Hub in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

http = httpx2.Client()


def commit_by_hand(
    endpoint: str, name: str, *lines: dict, token: str = "hf_localdev", revision: str = "main"
) -> httpx2.Response:
    """The last request of a push, without what a client would refuse to send."""
    header = {"key": "header", "value": {"summary": "by hand"}}
    body = "\n".join(json.dumps(line) for line in (header, *lines))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return http.post(f"{endpoint}/api/models/{name}/commit/{revision}", content=body, headers=headers)


def add(path: str, content: str = "x") -> dict:
    return {"key": "file", "value": {"path": path, "content": content}}


def announce_upload(endpoint: str, name: str, sha256: str, size: int, token: str = "hf_localdev") -> dict:
    """Announce a large file, the first request of its upload; return the actions of the response."""
    wanted = {"operation": "upload", "objects": [{"oid": sha256, "size": size}]}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = http.post(f"{endpoint}/{name}.git/info/lfs/objects/batch", json=wanted, headers=headers)
    return answer.raise_for_status().json()["objects"][0]["actions"]


@contextmanager
def hub_process(
    root: Path, *arguments: str, **options: object
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A local Hub that a test may kill; yields (process, endpoint, what it has printed)."""
    command = [sys.executable, "-m", "local_hub", "--root", str(root), "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes, **options) as process:
        try:
            lines = []
            while "# Ctrl-C" not in (lines[-1] if lines else ""):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            endpoint = next(line for line in lines if "HF_ENDPOINT" in line).strip().split("=")[1]
            yield process, endpoint, "".join(lines)
        finally:
            process.kill()
