"""Tab "API": the endpoints, with Python and curl snippets that call this Space."""

from __future__ import annotations

from html import escape
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import gradio as gr

from hub_model.inference.images import MAX_BYTES
from space import api
from space.archives import MAX_PICTURES
from space.desk_view import QUIET
from space.fields import MAX_CELLS
from space.resources import Resources
from space.texts import Words, number, say, say_html
from space.visits import Visit, Visits

PYTHON = """from gradio_client import Client, handle_file

client = Client("{address}")
answer = client.predict({python}api_name="/{name}")
print(answer)"""

UPLOAD = """FILE=$(curl -s -F "files=@{file}" {address}/gradio_api/upload | tr -d '[]"')
"""
CURL = """{upload}DATA='{{"data": [{data}]}}'
EVENT=$(curl -s -H "Content-Type: application/json" -d "$DATA" {address}/gradio_api/call/{name} | cut -d'"' -f4)
curl -sN {address}/gradio_api/call/{name}/$EVENT"""
FILE_DATA = """{"path": "'$FILE'", "meta": {"_type": "gradio.FileData"}}"""
ARGUMENTS = {  # of each snippet: file, arguments in Python, arguments in JSON
    "predict": ("cell.jpg", 'handle_file("cell.jpg"), ', FILE_DATA),
    "predict_many": ("cells.zip", '[handle_file("cells.zip")], ', f"[{FILE_DATA}]"),
    "count": ("cells.zip", '[handle_file("cells.zip")], ', f"[{FILE_DATA}]"),
    "field": ("field.jpg", 'handle_file("field.jpg"), ', FILE_DATA),
    "model": ("", "", ""),
}


def examples(name: str, address: str) -> dict[str, str]:
    """Python and curl snippets that call an endpoint of the Space at `address`."""
    file, python, data = ARGUMENTS[name]
    upload = UPLOAD.format(file=file, address=address) if file else ""
    return {
        "Python": PYTHON.format(address=address, python=python, name=name),
        "curl": CURL.format(upload=upload, address=address, data=data, name=name),
    }


def build(resources: Resources, words: Words, visits: Visits, tab: gr.Tab) -> tuple:
    """Register the API and lay out the tab."""
    api.register(resources)
    page = gr.HTML(elem_id="api-page")

    def opened(request: gr.Request) -> str:
        visit = visits.of(request)
        visit.results["api"] = address_of(request)
        return explain(visit.language, visit.results["api"])

    def redraw(visit: Visit) -> list[Any]:
        return [explain(visit.language, visit.results["api"]) if "api" in visit.results else gr.skip()]

    tab.select(opened, None, page, **QUIET)
    return [page], redraw


def address_of(request: gr.Request) -> str:
    """The address at which the visitor sees this Space, including the sub-path of a proxy."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", "http").split(",")[0].strip()
    host = headers.get("x-forwarded-host") or headers.get("host", "127.0.0.1:7860")
    referrer = urlsplit(headers.get("referer", "")).path  # for proxies that send no prefix
    path = headers.get("x-forwarded-prefix") or request.request.scope.get("root_path", "") or referrer
    return f"{scheme}://{host.split(',')[0].strip()}/{path.strip('/')}".rstrip("/")


def fields_of(returned: Any) -> str:
    """The fields of a result and their types: `{label: str, …}`, in brackets for a list."""
    if get_origin(returned) is list:
        return f"[{fields_of(get_args(returned)[0])}, …]"
    kinds = {name: kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
             for name, kind in get_type_hints(returned).items()}  # fmt: skip
    return "{" + ", ".join(f"{name}: {kind}" for name, kind in kinds.items()) + "}"


def explain(language: str, address: str) -> str:
    """The text of the tab, with `address` in the snippets."""
    pictures, megabytes = (number(language, limit) for limit in (MAX_PICTURES, MAX_BYTES / 2**20))
    sections = [f"<p>{escape(say(language, 'api_intro', most=pictures, megabytes=megabytes))}</p>"]
    for name, returned in api.ENDPOINTS.items():
        sections += [
            f"<h3><code>/{name}</code></h3><p>{escape(say(language, f'api_{name}', limit=MAX_CELLS))}</p>",
            f"<p>{escape(say(language, 'api_returns'))} <code>{escape(fields_of(returned))}</code></p>",
        ]
        for title, code in examples(name, address).items():
            sections.append(
                f"<details{' open' * (title == 'Python')}><summary>{title}</summary>"
                f"<pre tabindex='0'><code>{escape(code)}</code></pre></details>"
            )
    tools = ", ".join(f"<code>{name}</code>" for name in api.TOOLS)
    mcp = f"<code>{escape(address)}/gradio_api/mcp/</code>"
    agents = say_html(language, "api_agents", address=mcp, tools=tools)
    return f'<section class="api">{"".join(sections)}<h3>MCP</h3><p>{agents}</p></section>'
