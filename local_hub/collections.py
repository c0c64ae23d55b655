"""Collections: a title and a list of repos, as `huggingface_hub` creates, fills and reads them.

    ROOT/collections/OWNER/SLUG.json   {"title", "description", "private", "theme", "items": [{"id", "type", "note"}], …}

As on the Hub, a slug ends with an id, two collections of one owner cannot have the same title (409), and items whose repo
has been deleted or is private to somebody else are left out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from local_hub.request import HubRequest
from local_hub.storage import KINDS, HubError, object_id, timestamp

NAME = re.compile(r"(?!\.+$)[\w.-]+")  # of an owner, or a slug


def path_of(request: HubRequest, owner: str, slug: str) -> Path:
    if not (NAME.fullmatch(owner) and NAME.fullmatch(slug)):
        raise HubError(404, "Collection not found")
    return request.storage.root / "collections" / owner / f"{slug}.json"


def save(request: HubRequest, path: Path, content: dict[str, Any]) -> Response:
    path.parent.mkdir(parents=True, exist_ok=True)
    content["lastUpdated"] = timestamp()
    request.storage.write(path, json.dumps(content).encode())
    return JSONResponse(describe(request, path, content))


def visible(request: HubRequest, item: dict[str, Any]) -> bool:
    repo = request.storage.repository(f"{item['type']}s", *item["id"].split("/"))
    return repo.exists() and request.may_read(repo)


def describe(request: HubRequest, path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The collection, with the items that the request's user may see."""
    owner, slug, items = path.parent.name, path.stem, []
    for item in content["items"]:
        if visible(request, item):
            identity = object_id(f"{slug}/{item['type']}/{item['id']}")
            note = {"text": item["note"]} if item["note"] else None
            items.append({**item, "_id": identity, "position": len(items), "note": note})
    about = {"slug": f"{owner}/{slug}", "owner": {"name": owner}, "position": 0, "upvotes": 0}
    return {**content, **about, "items": items}


def open_collection(request: HubRequest) -> tuple[Path, dict[str, Any]]:
    """The file and the content of the collection in the path; to other users, a private one does not exist."""
    path = path_of(request, request.params["owner"], request.params["slug"])
    content = json.loads(path.read_bytes()) if path.is_file() else None
    if content is None or (content["private"] and not request.may_write(path.parent.name)):
        raise HubError(404, "Collection not found")
    return path, content


def get(request: HubRequest) -> Response:
    return JSONResponse(describe(request, *open_collection(request)))


def create(request: HubRequest) -> Response:
    body = request.json()
    owner, title = body["namespace"], body["title"]
    if not request.may_write(owner):
        raise HubError(403, f"{request.require_user()} has no right to create collections of {owner}")
    if len(title) > 59 or len(body.get("description") or "") > 150:
        raise HubError(400, "a collection's title has at most 59 characters, its description 150")
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    path = path_of(request, owner, f"{words}-{object_id(f'{owner}/{title}')}")
    content = {"title": title, "description": body.get("description"), "theme": "orange", "items": []}
    with request.storage.lock:
        if path.is_file():  # with `exists_ok` the client reads the slug from the error response
            refusal = {"error": "Collection already exists", "slug": f"{owner}/{path.stem}"}
            return JSONResponse(refusal, 409, {"X-Error-Message": refusal["error"]})
        return save(request, path, {**content, "private": bool(body.get("private"))})


def add_item(request: HubRequest) -> Response:
    body = request.json()
    item = {"id": body["item"]["id"], "type": body["item"]["type"], "note": body.get("note")}
    with request.storage.lock:  # concurrent changes must not overwrite each other
        path, content = open_collection(request)
        if not request.may_write(owner := path.parent.name):
            raise HubError(403, f"{request.require_user()} has no right to write to collections of {owner}")
        if f"{item['type']}s" not in KINDS or not visible(request, item):
            raise HubError(404, f"{item['type']} {item['id']} not found", "RepoNotFound")
        if any((item["id"], item["type"]) == (other["id"], other["type"]) for other in content["items"]):
            raise HubError(409, "the item is already in the collection")
        content["items"].append(item)
        return save(request, path, content)
