"""Framing and mutations: raw bytes, judged by `http1`. What Redis holds shows which requests the gateway has seen."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from .http1 import Answer, Request, judge
from .world import AUTHORIZATION, World, in_parallel

__all__ = ["Wire", "attack", "framing", "mutations"]

#: Inputs that share a project, which is then read as a whole.
_BATCH = 300


@dataclass(frozen=True)
class Wire:
    """The bytes of one connection, in the segments in which they are sent."""

    project: str
    number: int
    segments: tuple[bytes, ...]

    @property
    def raw(self) -> bytes:
        return b"".join(self.segments)


def _put(project: str, key: str, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [
        b"PUT /api/v1/sessions/%b?project=%b&environment=staging HTTP/1.1" % (key.encode(), project.encode()),
        b"Host: localhost",
        b"Authorization: " + AUTHORIZATION.encode(),
        b"Content-Type: application/json",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _whole_put(project: str, key: str) -> bytes:
    body = json.dumps({"label": key}).encode()
    return _put(project, key, b"Content-Length: %d" % len(body), body=body)


#: Values of Content-Length for a body of *n* bytes; two make two headers.
_LENGTHS = (
    (),
    (b"%(n)d",),
    (b"00%(n)d",),
    (b" \t%(n)d \t",),
    (b"%(less)d",),
    (b"%(more)d",),
    (b"0",),
    (b"-%(n)d",),
    (b"+%(n)d",),
    (b"%(n)d, %(n)d",),
    (b"%(n)d", b"%(n)d"),
    (b"0", b"%(n)d"),
    (b"0x%(n)x",),
    (b"",),
    (b"99999999999999999999999%(n)d",),
)
_CODINGS = (
    b"",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding: \tChunKed \r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n",
    b"Transfer-Encoding: , chunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: chunked\nX: \r\n",
)
_UPGRADES = (
    b"",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
)
#: Whether the body is chunked, and whether a second request is hidden within it or comes after it.
_BODIES = ("plain", "chunked", "plain, hiding", "chunked, hiding")


def framing(source: random.Random) -> list[Wire]:
    """Every combination of Content-Length, Transfer-Encoding, Upgrade and body: 2,700."""
    wires = []
    product = itertools.product(_LENGTHS, _CODINGS, _UPGRADES, _BODIES)
    for number, (lengths, coding, upgrade, kind) in enumerate(product):
        project = f"framing{number // _BATCH}"
        key = f"k{number}"
        hidden = _whole_put(project, f"{key}-hidden")
        content = json.dumps({"label": key}).encode()
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if kind.startswith("chunked") else content
        declared = body + hidden if kind.endswith("hiding") else body
        numbers = {b"n": len(declared), b"less": len(declared) - 1, b"more": len(declared) + 1}
        headers = [b"Content-Length: " + length % numbers for length in lengths]
        head = _put(project, key, *headers)[:-2] + coding + upgrade + b"\r\n"
        raw = head + body + hidden
        wires.append(Wire(project, number, _cut(raw, source, len(head))))
    return wires


def mutations(source: random.Random, count: int = 2000) -> list[Wire]:
    """Pipelines of good requests, each damaged in some places."""
    wires = []
    for number in range(count):
        project = f"mutations{number // _BATCH}"
        raw = b"".join(_good(source, project, f"k{number}-{i}") for i in range(source.randint(1, 3)))
        for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
            raw = _damage(source, raw, project, f"k{number}-hidden")
        wires.append(Wire(project, number, _cut(raw, source, source.randrange(len(raw) + 1))))
    return wires


def _good(source: random.Random, project: str, key: str) -> bytes:
    body = json.dumps({"label": key}).encode()
    middle = source.randrange(1, len(body))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:]))
    chunked = _put(project, key, b"Transfer-Encoding: chunked")
    get = _put(project, key).replace(b"PUT ", b"GET ", 1)
    return source.choice(
        (
            _whole_put(project, key),
            chunked + chunks + b"0\r\n\r\n",
            chunked + chunks.replace(b"\r\n", b';x="y"\r\n', 1) + b"0\r\nX-Late: 1\r\n\r\n",
            _put(project, key, b"Content-Length: %d" % len(body), b"Expect: 100-continue", body=body),
            _put(project, key, b"Content-Length: %d" % len(body), b"Connection: close", body=body),
            _whole_put(project, key).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
            get,
            get.replace(b"GET ", b"HEAD ", 1),
            get.replace(b"GET ", b"POST ", 1).replace(b"?", b"/overrides/ovr_a?", 1),
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
    )


_ODD = (b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b"\xff", b"\x7f", b"0", b"%00", b"#", b"\\")
_LINES = (
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length : 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Host: other",
    b"Connection: close",
    b"Connection: keep-alive, content-length",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b" folded",
    b"no colon",
    b": no name",
    b"X-HTTP-Method-Override: DELETE",
    b"X-Long: " + 70_000 * b"a",
)


def _damage(source: random.Random, raw: bytes, project: str, hidden: str) -> bytes:
    at = source.randrange(len(raw) + 1)
    end = min(len(raw), at + source.randint(1, 40))
    lines = [match.end() for match in re.finditer(b"\r\n", raw)] or [0]
    line = source.choice(lines)
    return source.choice(
        (
            lambda: raw[:at] + bytes([source.randrange(256)]) + raw[at + 1 :],
            lambda: raw[:at] + source.choice(_ODD) + raw[at:],
            lambda: raw[:at] + source.choice(_ODD) + raw[at + 1 :],
            lambda: raw[:at] + raw[end:],
            lambda: raw[:end] + raw[at:],
            lambda: raw[:at],
            lambda: raw[:line] + source.choice(_LINES) + b"\r\n" + raw[line:],
            lambda: raw[:line] + source.choice(_LINES) + b"\r\n" + raw[line:],
            lambda: raw[: line - 2] + source.choice((b"\n", b"\r", b"\r\r\n", b"\r\n ")) + raw[line:],
            lambda: raw[:at] + _whole_put(project, hidden) + raw[at:],
            lambda: raw[:line] + _whole_put(project, hidden) + raw[line:],
            lambda: raw.replace(b"HTTP/1.1", source.choice((b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1")), 1),
            lambda: raw.replace(b"/api", source.choice((b"http://localhost/api", b"//api", b"*", b"/a pi")), 1),
        )
    )()


def _cut(raw: bytes, source: random.Random, at: int) -> tuple[bytes, ...]:
    """Send all at once, or in two segments."""
    return tuple(part for part in ((raw[:at], raw[at:]) if source.random() < 0.5 else (raw,)) if part)


async def attack(world: World, wires: Sequence[Wire]) -> list[str]:
    """Send each, judge the answers, and then compare what Redis holds with what was answered."""
    written: dict[str, dict[str, set[str | None]]] = defaultdict(lambda: defaultdict(set))

    async def one(wire: Wire) -> list[str]:
        wrong, pairs = judge(wire.raw, await world.exchange(wire.segments))
        for request, answer in pairs:
            wrong += _record(wire.project, request, answer, written)
        return wrong

    failures = await in_parallel(wires, one)
    for project in dict.fromkeys(wire.project for wire in wires):
        stored = await world.sessions(project)
        expected = written[project]
        for key in stored.keys() ^ expected.keys():
            failures.append(f"{project}: the session {key!r} is in {'Redis' if key in stored else 'an answer'} only")
        for key in stored.keys() & expected.keys():
            if stored[key]["label"] not in expected[key]:
                failures.append(f"{project}: {key!r} has the label {stored[key]['label']!r}, not {expected[key]}")
    return failures


def _record(
    project: str, request: Request, answer: Answer, written: dict[str, dict[str, set[str | None]]]
) -> list[str]:
    """Check that a write was answered as its bytes say, and keep what it wrote."""
    if request.method == b"PUT" and not request.flaw and not request.doubtful and request.whole:
        wants = _label(request.body)
        good = request.values(b"authorization") == [AUTHORIZATION.encode()]
        good &= request.values(b"content-type") == [b"application/json"]
        target = rb"/api/v1/sessions/[a-z0-9-]+\?project=%b&environment=staging" % project.encode()
        good &= re.fullmatch(target, request.target) is not None
        if good and wants is not None and answer.status != 200:
            return [f"a good PUT was answered {answer.status} {answer.body!r}"]
    if answer.status != 200 or request.method not in (b"PUT", b"POST", b"DELETE"):
        return []
    key = unquote_to_bytes(re.sub(rb"\?.*", b"", request.target).split(b"/sessions/")[-1].split(b"/")[0]).decode()
    if request.method == b"PUT":
        document = answer.document
        if (document["sessionKey"], document["label"]) != (key.strip(), _label(request.body)):
            return [f"the PUT of {key!r}, {request.body!r} was taken for {document}"]
        if (document["project"], document["environment"]) == (project, "staging"):
            written[project][document["sessionKey"]].add(document["label"])
    elif request.target.endswith(b"?project=%b&environment=staging" % project.encode()):
        written[project][key.strip()].add(None)
    return []


def _label(body: bytes) -> str | None:
    """The label that a body sets; None if it sets none, or is no body of a PUT."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    label = document.get("label") if isinstance(document, dict) and len(document) == 1 else None
    return label if isinstance(label, str) else None
