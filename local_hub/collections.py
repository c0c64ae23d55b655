"""Collections: a title and a list of repos, as `huggingface_hub` creates, fills, lists and deletes them.

    ROOT/collections/OWNER/SLUG.json   {"title", "description", "private", "theme", "items": [{"id", "type", "note"}], …}

As on the Hub, a slug ends with an id of its own, two collections of one owner cannot share a title (409), and an item
whose repo is gone or private to somebody else is left out.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from local_hub.request import HubRequest
from local_hub.storage import KINDS, HubError, object_id, timestamp


class Shelf:
    """The collections of one request's user."""

    def __init__(self, request: HubRequest):
        self.request, self.storage = request, request.hub.storage
        self.root = self.storage.root / "collections"

    def path(self, owner: str, slug: str) -> Path:
        if not all(re.fullmatch(r"[\w.-]+", name) and name.strip(".") for name in (owner, slug)):
            raise HubError(404, "Collection not found")
        return self.root / owner / f"{slug}.json"

    def open(self, write: bool = False) -> tuple[Path, dict[str, Any]]:
        """The collection of the address: its file and its content."""
        owner = self.request.params["owner"]
        path = self.path(owner, self.request.params["slug"])
        allowed = self.request.may_write(owner)
        if not path.is_file() or not (allowed or not json.loads(path.read_bytes())["private"]):
            raise HubError(404, "Collection not found")
        if write and not allowed:
            raise HubError(
                403, f"{self.request.require_user()} has no right to write to collections of {owner}"
            )
        return path, json.loads(path.read_bytes())

    def save(self, path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.storage.write(path, json.dumps({**content, "lastUpdated": timestamp()}).encode())

    def visible(self, item: dict[str, Any]) -> bool:
        repo = self.storage.repository(f"{item['type']}s", *item["id"].split("/"))
        return repo.exists() and self.request.may_read(repo)

    def describe(self, path: Path, content: dict[str, Any]) -> dict[str, Any]:
        owner, slug, items = path.parent.name, path.stem, []
        for item in filter(self.visible, content["items"]):
            identity = object_id(f"{slug}/{item['type']}/{item['id']}")
            note = {"text": item["note"]} if item["note"] else None
            items.append({**item, "_id": identity, "position": len(items), "note": note})
        about = {"slug": f"{owner}/{slug}", "owner": {"name": owner}, "position": 0, "upvotes": 0}
        return {**content, **about, "items": items}


def locked(change: Callable[[HubRequest], Response]) -> Callable[[HubRequest], Response]:
    """Of two changes at once, let neither overwrite the other."""

    @functools.wraps(change)
    def alone(request: HubRequest) -> Response:
        with request.hub.storage.lock:
            return change(request)

    return alone


@locked
def create(request: HubRequest) -> Response:
    body, shelf = request.json(), Shelf(request)
    owner, title = body["namespace"], body["title"]
    if not request.may_write(owner):
        raise HubError(403, f"{request.require_user()} has no right to create collections of {owner}")
    if len(title) > 59 or len(body.get("description") or "") > 150:
        raise HubError(400, "a collection's title has at most 59 characters, its description 150")
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    path = shelf.path(owner, f"{words}-{object_id(f'{owner}/{title}')}")
    if path.is_file():
        refusal = {"error": "Collection already exists", "slug": f"{owner}/{path.stem}"}
        return JSONResponse(refusal, 409, {"X-Error-Message": refusal["error"]})
    content = {"title": title, "description": body.get("description"), "theme": "orange", "items": []}
    shelf.save(path, {**content, "private": bool(body.get("private"))})
    return JSONResponse(shelf.describe(path, json.loads(path.read_bytes())))


def get(request: HubRequest) -> Response:
    shelf = Shelf(request)
    return JSONResponse(shelf.describe(*shelf.open()))


def list_all(request: HubRequest) -> Response:
    shelf, found = Shelf(request), []
    owners, wanted = request.query.getlist("owner"), request.query.getlist("item")
    for path in sorted(shelf.root.glob("*/*.json")):
        content = json.loads(path.read_bytes())
        items = {f"{item['type']}s/{item['id']}" for item in content["items"]}
        readable = not content["private"] or request.may_write(path.parent.name)
        if readable and (not owners or path.parent.name in owners) and items >= set(wanted):
            shown = shelf.describe(path, content)
            del shown["position"]  # the client counts by itself
            found.append({**shown, "items": shown["items"][:4]})
    return JSONResponse(found)


@locked
def update(request: HubRequest) -> Response:
    shelf = Shelf(request)
    path, content = shelf.open(write=True)
    known = ("title", "description", "private", "theme")
    shelf.save(path, content | {key: value for key, value in request.json().items() if key in known})
    return JSONResponse({"data": shelf.describe(path, json.loads(path.read_bytes()))})


@locked
def delete(request: HubRequest) -> Response:
    Shelf(request).open(write=True)[0].unlink()
    return JSONResponse({})


@locked
def add_item(request: HubRequest) -> Response:
    shelf, body = Shelf(request), request.json()
    path, content = shelf.open(write=True)
    item = {"id": body["item"]["id"], "type": body["item"]["type"], "note": body.get("note")}
    if f"{item['type']}s" not in KINDS or not shelf.visible(item):
        raise HubError(404, f"{item['type']} {item['id']} not found", "RepoNotFound")
    if any((item["id"], item["type"]) == (there["id"], there["type"]) for there in content["items"]):
        raise HubError(409, "the item is already in the collection")
    content["items"].append(item)
    shelf.save(path, content)
    return JSONResponse(shelf.describe(path, content))


@locked
def delete_item(request: HubRequest) -> Response:
    shelf = Shelf(request)
    path, content = shelf.open(write=True)
    shown = {item["_id"]: (item["type"], item["id"]) for item in shelf.describe(path, content)["items"]}
    if (gone := shown.get(request.params["item"])) is None:
        raise HubError(404, "there is no such item in the collection")
    kept = [item for item in content["items"] if (item["type"], item["id"]) != gone]
    shelf.save(path, content | {"items": kept})
    return JSONResponse({})
