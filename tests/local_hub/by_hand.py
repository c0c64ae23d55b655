"""Requests that no client would send, made by hand."""

import json

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
