"""Well-framed calls whose key, query, headers and body may each be bad. A model of the API says what each must do.

The model knows which error codes each part may cause, and what state the call leaves. A refused call changes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from .http1 import Answer
from .world import Client, World, in_parallel

__all__ = ["Call", "attack", "calls"]

_PLACE = {"project": "calls", "environment": "staging"}
_EMPTY: dict[str, Any] = {"label": None, "scenario": None, "overrides": [], "globalDelayMs": 0, "globalDelayMaxMs": 0}


@dataclass(frozen=True)
class Call:
    """One call on a session, what it may be refused with, and what it sets otherwise."""

    number: int
    kind: str
    #: the session's key, and its state before
    key: str
    before: dict[str, Any] | None
    segment: str
    override: str = ""
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    #: 'current', 'stale', or the header itself
    if_match: str | None = None
    if_none_match: str | None = None
    body: bytes | None = None
    patch: dict[str, Any] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()


_METHODS = {
    "put": "PUT",
    "get": "GET",
    "head": "HEAD",
    "delete": "DELETE",
    "reset": "DELETE",
    "activate": "POST",
    "deactivate": "DELETE",
}


def calls(source: random.Random, count: int = 3000) -> list[Call]:
    """Make calls, of which about a half have something bad about them."""
    return [_call(source, number) for number in range(count)]


def _call(source: random.Random, number: int) -> Call:
    kind = source.choice(["put"] * 12 + ["get", "get", "head", "delete", "reset", "reset", "activate", "deactivate"])
    key = f"{number}-" + source.choice(("x", "ü€", "🔑 a", "a/b?c#d", "..", "%41", "a+b&c=d", "x" * 220))
    key = key[:200]
    segment = _spell(source, key)
    codes: set[str] = set()
    if source.random() < 0.08:
        segment, code = source.choice(_BAD_KEYS)
        codes.add(code)
    call = Call(number, kind, key, _state(source) if source.random() < 0.7 else None, segment)
    query = [("project", "calls"), ("environment", "staging")]
    if kind in ("delete", "reset"):
        query.append(("mode", kind))
    if kind in ("activate", "deactivate"):
        override, code = source.choice(_OVERRIDES)
        call = replace(call, override=override)
        codes |= {code} if code else set()
    if source.random() < 0.15:
        query, code = _bad_query(source, kind, query)
        codes.add(code)
    elif kind != "get" and kind != "head" and source.random() < 0.1:
        views, code = source.choice(
            (("0", ""), ("00", ""), ("-1", "q"), ("1001", "q"), ("x", "q"), ("٣", "q"), ("", "q"))
        )
        query.append(("views", quote(views)))
        codes |= {"invalid_query"} if code else set()
    call = replace(call, if_match=_precondition(source, codes, kind, "If-Match"))
    call = replace(call, if_none_match=_precondition(source, codes, kind, "If-None-Match"))
    if kind == "put":
        call = _with_body(source, call, query, codes)
    source.shuffle(query)
    return replace(call, query=tuple(query), codes=frozenset(codes))


def _spell(source: random.Random, key: str) -> str:
    """Percent-encode a key in one of many ways, with what normalising removes."""
    full = "".join(f"%{byte:02{source.choice('xX')}}" for byte in key.encode())
    usual = quote(key, safe="")
    broken = "%0D%0A".join((usual, "")) if source.random() < 0.5 else f"%E2%80%A8{usual}"
    padded = f"%20%09{usual}%20"
    return source.choice((usual, usual, full, broken, padded))


_BAD_KEYS = [
    *((segment, "invalid_session_key") for segment in (
        "a%00b", "%00", "a%1Bb", "a%7Fb", "a%C2%85b", "%FF", "%zz", "a%", "a%2", "a%C3", "%ED%A0%80", "%C0%AF",
        "%20", "%0A", "%0D%0A%20%E2%80%A9", "%E2%80%A8", "%F4%90%80%80", "a" * 300 + "%FF",
    )),
    *((segment, "not_found") for segment in ("", "a/b", "a/", "/a", "a/overrides", "a/overrides/x/y", "../x")),
]  # fmt: skip

_OVERRIDES = [
    *((f"ovr_{name}", "") for name in ("a", "b", "c", "-_", "x" * 124)),
    *((bad, "invalid_override") for bad in ("a", "ovr_", "ovr_a%20b", "ovr_%FF", "ovr_" + "x" * 125, "scn_a", "%00")),
]


def _bad_query(source: random.Random, kind: str, query: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
    rest = [(name, value) for name, value in query if name != "project"]
    others = [("mode", "x"), ("mode", ""), ("mode", "DELETE")] if kind in ("put", "delete", "reset") else []
    options: list[tuple[list[tuple[str, str]], str]] = [
        (rest, "project_required"),
        ([(name, value) for name, value in query if name != "environment"], "environment_required"),
        ([*query, ("project", "calls")], "invalid_query"),
        ([*query, ("Project", "calls")], "invalid_query"),
        ([*query, ("", "")], "invalid_query"),
        ([*query, ("%FF", "1")], "invalid_query"),
        ([*query, ("limit", "1")], "invalid_query"),
        *(
            ([*rest, ("project", bad)], "invalid_query")
            for bad in ("", "-a", "a:b", "a%7Bb%7D", "a%0A", "p" * 65, "%FF")
        ),
        *(([(n, v) for n, v in query if n != "mode"] + [other], "invalid_mode") for other in others),
    ]
    return source.choice(options)


def _precondition(source: random.Random, codes: set[str], kind: str, name: str) -> str | None:
    if source.random() < 0.85:
        return None
    value = source.choice(("current", "stale", "*", '"x", current', "W/current", "5", '"', "", '"1" "2"', "*, *"))
    if not _takes(kind, name, value):
        codes.add("invalid_query")
    return value


def _takes(kind: str, name: str, value: str) -> bool:
    """Whether a call takes a precondition: a GET ignores If-Match, and a PUT with If-None-Match only creates."""
    if name == "If-Match" and kind in ("get", "head"):
        return True
    if kind == "put" and name == "If-None-Match":
        return value == "*"
    taken = ("put", "delete", "reset") if name == "If-Match" else ("get", "head")
    return kind in taken and value not in ("5", '"', "", '"1" "2"', "*, *")


def _with_body(source: random.Random, call: Call, query: list[tuple[str, str]], codes: set[str]) -> Call:
    patch = {name: value for name, value in _state(source).items() if source.random() < 0.5}
    body = json.dumps(patch, ensure_ascii=source.random() < 0.5, indent=source.choice((None, 2))).encode()
    if source.random() < 0.3:
        # A body may name what the query leaves out.
        others = ("other",) if {"project", "environment"} <= {name for name, _ in query} else ()
        body, code = source.choice(_bad_bodies(source, patch, others))
        codes.add(code)
    if source.random() < 0.2 and not {"invalid_mode", "invalid_query"} & codes:
        query.append(("mode", source.choice(("replace", "merge"))))
    media_type, encoding = "application/json", None
    if source.random() < 0.08:
        media_type = source.choice(("", "text/plain", "application/json; charset=latin-1", "application/jsonx", "json"))
        codes.add("unsupported_media_type")
    elif source.random() < 0.05:
        encoding = source.choice(("gzip", "identity, gzip", "x"))
        codes.add("unsupported_media_type")
    headers = [("Content-Type", media_type)] + ([("Content-Encoding", encoding)] if encoding else [])
    return replace(call, body=body, patch=patch, headers=tuple(headers))


def _state(source: random.Random) -> dict[str, Any]:
    return {
        "label": source.choice((None, "", "a", "ü€🔑", "\u2028\x00\x7f", '"\\/', "x" * 200)),
        "scenario": source.choice((None, "scn_a", "scn_" + "x" * 124)),
        "overrides": [f"ovr_{source.choice('abc')}" for _ in range(source.choice((0, 1, 5)))],
        "globalDelayMs": source.choice((0, 1, 120_000)),
        "globalDelayMaxMs": source.choice((0, 1, 120_000)),
    }


def _bad_bodies(source: random.Random, patch: dict[str, Any], others: Sequence[str]) -> list[tuple[bytes, str]]:
    good = json.dumps({"label": "x", **patch}).encode()
    ids = [f"ovr_{i}" for i in range(201)]
    fields: dict[tuple[str, str], tuple[Any, ...]] = {
        ("label", "invalid_body"): (5, True, [], {}, 1.5, "x" * 201),
        ("globalDelayMs", "invalid_body"): (-1, 120_001, 0.5, "1", True, [], 10**40, 1e300),
        ("scenario", "invalid_body"): (5, [], {}, True),
        ("scenario", "invalid_scenario"): ("", "a", "scn_", "scn_a b", "scn_" + "x" * 125),
        ("overrides", "invalid_body"): (None, "ovr_a", [5], [None], {}, [["ovr_a"]], ids),
        ("overrides", "invalid_override"): ([""], ["ovr_a", "a"], ["ovr_"], ["ovr_a\n"], ["ovr_ä"]),
        ("ttlSeconds", "invalid_body"): (0, 59, 86_401, 60.5, "60", True, 10**30),
        ("project", "invalid_body"): (None, 5, "", "a b", *others),
        ("environment", "invalid_body"): (None, 5, "", "a b", *others),
        **{(name, "invalid_body"): (1,) for name in ("", "Label", "label ", "sessionKey", "\u0000", "x" * 5000)},
    }
    name, code = source.choice(list(fields))
    bad = {name: source.choice(fields[name, code])}
    number = source.choice((b"NaN", b"01", b"+1", b"0x1", b".5", b"Infinity"))
    text = source.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\n", b"\\ud800", b"\\x"))
    middle = source.randrange(1, len(good))
    return [
        *[(json.dumps({**patch, **bad}).encode(), code)] * 12,
        (b"", "invalid_json"),
        (good[:middle], "invalid_json"),
        (good + source.choice((b"x", b"{}", b",", b"\0")), "invalid_json"),
        (b"\xef\xbb\xbf" + good, "invalid_json"),
        (good.replace(b"{", b"{'a':1,", 1), "invalid_json"),
        (b'{"globalDelayMs":' + number + b"}", "invalid_json"),
        (b'{"label":"' + text + b'"}', "invalid_json"),
        (b'{"label":"a","label":"b"}', "invalid_json"),
        (b'{"overrides":[],"\\u006fverrides":[]}', "invalid_json"),
        (source.choice((b"[", b'{"a":', b'{"label":[')) * 5000, "invalid_json"),
        (source.choice((b"[]", b"5", b"null", b'"x"', b"true", b"[{}]")), "invalid_body"),
        (good + b" " * 70_000, "body_too_large"),
    ]


async def attack(world: World, inputs: Sequence[Call]) -> list[str]:
    """Make each call on a session whose state is known, and look at the session afterwards."""

    async def one(call: Call) -> list[str]:
        async with world.client() as client:
            return await _check(client, call)

    return await in_parallel(inputs, one)


async def _check(client: Client, call: Call) -> list[str]:
    plain = quote(call.key, safe="")
    etag, before = "", None
    if call.before is not None:
        answer = await client.put(_PLACE, plain, call.before)
        etag, before = answer.headers["etag"], _folded(call.before)
    headers = [*call.headers]
    for name, value in (("If-Match", call.if_match), ("If-None-Match", call.if_none_match)):
        if value is not None:
            headers.append((name, value.replace("current", etag or '"1"').replace("stale", '"0"')))
    path = f"/sessions/{call.segment}" + (f"/overrides/{call.override}" if call.override else "")
    query = "&".join(f"{name}={value}" for name, value in call.query)
    answer = await client.call(_METHODS[call.kind], path, query, call.body, headers)

    allowed, after = _expected(call, before, etag)
    wrong = []
    outcome = answer.code if answer.status >= 400 and answer.body else str(answer.status)
    if outcome not in allowed:
        wrong.append(f"answered {outcome} {answer.body[:200]!r}, not one of {sorted(allowed)}")
    if answer.status >= 400:
        after = before
    now = await client.call("GET", f"/sessions/{plain}", _PLACE)
    wrong += _compare(now, after, etag if after == before else "")
    return wrong


def _expected(call: Call, before: dict[str, Any] | None, etag: str) -> tuple[set[str], dict[str, Any] | None]:
    """What the answer may be, and the state that a success leaves."""
    failed = _failed_preconditions(call, before)
    codes = set(call.codes)
    if call.kind == "head":
        # Its answers have no content, so only their class is known.
        statuses = {"401", "404", "422"} if codes else {"404"} if before is None else {"200"}
        if before is not None and not codes and call.if_none_match in ("current", "*", '"x", current', "W/current"):
            statuses = {"304"}
        return statuses, before
    if codes:
        # Several parts may be wrong, and any may be found first.
        return codes, before
    if failed:
        return ({"precondition_failed"} if before is not None else {"precondition_failed", "not_found"}), before
    if call.kind == "get":
        hit = call.if_none_match in ("current", "*", '"x", current', "W/current")
        return ({"not_found"} if before is None else {"304"} if hit else {"200"}), before
    if before is None and call.kind in ("reset", "deactivate"):
        return {"not_found"}, None
    state = dict(before or _EMPTY)
    if call.kind == "put":
        replaces = ("mode", "replace") in call.query
        return {"200"}, _folded({**(_EMPTY if replaces else state), **call.patch})
    if call.kind == "delete":
        return {"200"}, None
    if call.kind == "reset":
        return {"200"}, dict(_EMPTY)
    others = [id_ for id_ in state["overrides"] if id_ != call.override]
    if call.kind == "deactivate":
        return {"200"}, {**state, "overrides": others}
    return {"200"}, state if call.override in state["overrides"] else {**state, "overrides": [*others, call.override]}


def _failed_preconditions(call: Call, before: dict[str, Any] | None) -> bool:
    if call.kind in ("get", "head"):
        return False
    match, none_match = call.if_match, call.if_none_match
    if match is not None and (before is None or match in ("stale", "W/current")):
        return True
    return none_match is not None and before is not None


def _folded(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "overrides": list(dict.fromkeys(state["overrides"]))}


def _compare(answer: Answer, state: dict[str, Any] | None, etag: str) -> list[str]:
    if state is None:
        return [] if answer.status == 404 else [f"the session exists: {answer.body!r}"]
    if answer.status != 200:
        return [f"the session is {answer.status}"]
    found = {name: answer.document[name] for name in _EMPTY}
    if found != state:
        return [f"the session is {found}, not {state}"]
    return [f"the revision changed from {etag}"] if etag and answer.headers["etag"] != etag else []
