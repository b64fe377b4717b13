"""The API's document as one page for people, rendered here: no script, and nothing from another server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from .errors import Headers

__all__ = ["PAGE_HEADERS", "render_page"]

JSONObject = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #57606a; --line: #d8dee4; --back: #ffffff; --box: #f6f8fa;
  --accent: #0757ba; --get: #0757ba; --put: #7a4a00; --post: #116329; --delete: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117;
  --box: #161b22; --accent: #6cb6ff; --get: #6cb6ff; --put: #e3b341; --post: #57d364; --delete: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 6rem; max-width: 54rem; background: var(--back); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 3.5rem 0 .5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); font-size: 1.15rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--soft); }
p { margin: .5rem 0; max-width: 44rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre, .path { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .875em; background: var(--box); padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere; }
pre { margin: .5rem 0; padding: .8rem 1rem; overflow-x: auto; background: var(--box); border: 1px solid var(--line);
  border-radius: 6px; font-size: .82rem; line-height: 1.5; }
pre code { padding: 0; background: none; font-size: 1em; overflow-wrap: normal; }
.soft { color: var(--soft); }
.path { font-size: .98rem; font-weight: 600; overflow-wrap: anywhere; }
.method { display: inline-block; min-width: 4.2rem; font: 700 .8rem/1.6 ui-monospace, Menlo, Consolas, monospace; }
.get { color: var(--get); } .put { color: var(--put); } .post { color: var(--post); } .delete { color: var(--delete); }
ul.index { margin: 1.5rem 0 0; padding: 0; list-style: none; }
ul.index li { display: grid; grid-template-columns: 4.5rem 1fr; padding: .3rem 0; }
ul.index .soft { grid-column: 2; font-size: .9rem; line-height: 1.4; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; line-height: 1.5; }
td { padding: .45rem .75rem .45rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
td:first-child { width: 12rem; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
@media (max-width: 36rem) { td { display: block; padding: .1rem 0; border: 0; width: auto; }
  td:first-child { width: auto; padding-top: .6rem; } }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: The page may use its own style, and nothing else at all.
PAGE_HEADERS: Headers = (
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

_CODE = re.compile(r"`([^`]+)`")
_TYPE_WORDS = {"array": "list", "object": "object", "integer": "whole number"}


def render_page(document: JSONObject) -> bytes:
    """Render an OpenAPI document."""
    return "\n".join(_Page(document).lines()).encode()


class _Page:
    def __init__(self, document: JSONObject) -> None:
        self._document = document

    def lines(self) -> Iterator[str]:
        info = self._document["info"]
        yield "<!doctype html>"
        yield '<html lang="en"><head><meta charset="utf-8">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        yield f"<h1>{escape(info['title'])}</h1>"
        yield f'<p class="soft">Version {escape(info["version"])} · <a href="openapi.json">openapi.json</a></p>'
        for paragraph in info["description"].split("\n\n"):
            yield f"<p>{_prose(paragraph)}</p>"
        yield '<ul class="index">'
        for path, method, operation in self._operations():
            yield (
                f'<li>{_method(method)}<a class="path" href="#{escape(operation["operationId"])}">{escape(path)}</a>'
                f'<span class="soft">{_prose(operation["summary"])}</span></li>'
            )
        yield "</ul>"
        for path, method, operation in self._operations():
            yield from self._operation(path, method, operation)
        yield "</body></html>"

    def _operations(self) -> Iterator[tuple[str, str, JSONObject]]:
        for path, item in self._document["paths"].items():
            for method, operation in item.items():
                yield path, method, operation

    def _operation(self, path: str, method: str, operation: JSONObject) -> Iterator[str]:
        name = escape(operation["operationId"])
        yield f'<h2 id="{name}">{_method(method)}<span class="path">{escape(path)}</span></h2>'
        yield f"<p>{_prose(operation['summary'])}.</p>"
        if "description" in operation:
            yield f"<p>{_prose(operation['description'])}</p>"
        if operation.get("security") == []:
            yield '<p class="soft">Needs no key.</p>'
        parameters = [self._resolved(entry) for entry in operation["parameters"]]
        if parameters:
            yield "<h3>Parameters</h3>"
            yield from _table(
                (
                    f'<code>{escape(entry["name"])}</code> <span class="soft">{escape(entry["in"])}</span>',
                    f"{_prose(entry['description'])} {self._kind(entry['schema'])}",
                )
                for entry in parameters
            )
        if "requestBody" in operation:
            yield from self._body(operation["requestBody"]["content"]["application/json"])
        yield from self._answer(operation["responses"]["200"])
        yield from self._errors(operation["responses"])

    def _body(self, content: JSONObject) -> Iterator[str]:
        schema = self._resolved(content["schema"])
        yield "<h3>Body</h3>"
        yield from _table(
            (f"<code>{escape(name)}</code>", f"{_prose(entry.get('description', ''))} {self._kind(entry)}")
            for name, entry in schema["properties"].items()
        )
        yield _json(content["example"])

    def _answer(self, response: JSONObject) -> Iterator[str]:
        yield "<h3>Answer</h3>"
        for media_type, content in response["content"].items():
            yield _json(content["example"]) if "example" in content else f"<p><code>{escape(media_type)}</code></p>"
        yield from self._header_table(response)

    def _header_table(self, response: JSONObject) -> Iterator[str]:
        headers = {name: self._resolved(entry) for name, entry in response["headers"].items()}
        yield from _table(
            (f"<code>{escape(name)}</code>", _prose(entry["description"])) for name, entry in headers.items()
        )

    def _errors(self, responses: JSONObject) -> Iterator[str]:
        rows = []
        for status, response in responses.items():
            if status == "304":
                rows.append((status, escape(response["description"])))
            for code, example in response.get("content", {}).get("application/json", {}).get("examples", {}).items():
                rows.append((f"{status} <code>{escape(code)}</code>", _prose(example["value"]["error"], code=False)))
        if rows:
            yield "<h3>Otherwise</h3>"
            yield from _table(rows)

    def _kind(self, schema: JSONObject) -> str:
        """What a value may be, in a few words."""
        schema = self._resolved(schema)
        choices = schema.get("anyOf", [schema])
        words = [self._kind_of_one(choice) for choice in choices]
        if "default" in schema:
            words.append(f"default {schema['default']}")
        return f'<span class="soft">{escape(" or ".join(words[: len(choices)]))}' + (
            f"; {escape(words[-1])}</span>" if "default" in schema else "</span>"
        )

    def _kind_of_one(self, schema: JSONObject) -> str:
        if "enum" in schema:
            return " or ".join(map(str, schema["enum"]))
        kind = str(schema.get("type", "anything"))
        words = _TYPE_WORDS.get(kind, kind)
        if "minimum" in schema and "maximum" in schema:
            words += f" {schema['minimum']} to {schema['maximum']}"
        if "maxLength" in schema:
            words += f" of at most {schema['maxLength']} characters"
        if kind == "array":
            words += f" of {self._kind_of_one(schema['items'])}s"
        return words

    def _resolved(self, entry: JSONObject) -> JSONObject:
        """An entry, or what it refers to."""
        if "$ref" not in entry:
            return entry
        found: Any = self._document
        for part in entry["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        resolved: JSONObject = found
        return resolved


def _method(method: str) -> str:
    return f'<span class="method {escape(method)}">{escape(method.upper())}</span>'


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "<table>"
    for name, text in rows:
        yield f"<tr><td>{name}</td><td>{text}</td></tr>"
    yield "</table>"


def _prose(text: str, *, code: bool = True) -> str:
    """Plain text as HTML; what stands between back-ticks is code."""
    escaped = escape(text, quote=False)
    return _CODE.sub(r"<code>\1</code>", escaped) if code else escaped


def _json(value: object) -> str:
    return f"<pre><code>{escape(json.dumps(value, indent=2, ensure_ascii=False), quote=False)}</code></pre>"
