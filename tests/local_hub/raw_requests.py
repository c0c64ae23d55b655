"""Raw requests, for what the clients would refuse to send, and a Hub in its own process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

http = httpx2.Client()


def authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def post_commit(endpoint: str, name: str, *lines: dict, revision: str = "main") -> httpx2.Response:
    """The last request of a push."""
    header = {"key": "header", "value": {"summary": "raw"}}
    body = "\n".join(json.dumps(line) for line in (header, *lines))
    url = f"{endpoint}/api/models/{name}/commit/{revision}"
    return http.post(url, content=body, headers=authorization("hf_localdev"))


def add(path: str, content: str = "x") -> dict:
    return {"key": "file", "value": {"path": path, "content": content}}


def request_upload(endpoint: str, name: str, sha256: str, size: int, token: str = "hf_localdev") -> str:
    """Announce an LFS object, the first request of its upload; return the URL to upload it to."""
    batch = {"operation": "upload", "objects": [{"oid": sha256, "size": size}]}
    url = f"{endpoint}/{name}.git/info/lfs/objects/batch"
    response = http.post(url, json=batch, headers=authorization(token)).raise_for_status()
    return response.json()["objects"][0]["actions"]["upload"]["href"]


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
