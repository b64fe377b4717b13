"""The API's calls as HTTP requests, and its answers as the library's values. No I/O.

`SessionCalls` builds a `Call` for each call of the API. A driver sends it, and the call reads the `Answer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct, structs

from ..catalog.model import ScenarioPage
from ..errors import InvalidQueryError
from ..paging import validate_limit
from ..protocol.calls import IfMatch
from ..session import (
    BulkResult,
    Effect,
    Session,
    SessionDetails,
    SessionDocument,
    SessionEntry,
    SessionPage,
    SessionPatch,
    ViewListDocument,
    parse_time,
    shorten_session_key,
    validate_key_prefix,
    validate_override,
    validate_session_key,
)

T = TypeVar("T")

BASE_PATH = "/api/v1"

_SESSIONS = f"{BASE_PATH}/sessions"

#: The value of `mode` in a query.
Mode = Literal["reset", "delete"]


class WriteTerms(TypedDict, total=False):
    """What a write waits for: the arguments of these names of `SessionClient.put`."""

    views: int
    wait: bool
    replicas: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """An HTTP request, and how to read the answer to it."""

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    query: Mapping[str, str]
    read: Callable[[Answer], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None

    @property
    def writes(self) -> bool:
        """Whether it can change anything."""
        return self.method != "GET"

    @property
    def repeatable(self) -> bool:
        """Whether repeating it is safe after it may have been applied. A precondition would no longer hold."""
        return not self.headers.keys() & {"if-match", "if-none-match"}


@dataclass(frozen=True, slots=True)
class SessionCalls:
    """Builds the calls on one project and environment; None leaves the choice to the gateway."""

    project: str | None
    environment: str | None

    def get(self, session_key: str) -> Call[Session]:
        """Read a session."""
        return self._read(_session_path(session_key), _read_session)

    def put(
        self,
        session_key: str,
        patch: SessionPatch,
        *,
        replace: bool,
        if_match: IfMatch | None,
        if_none_match: Literal["*"] | None,
        **terms: Unpack[WriteTerms],
    ) -> Call[Session]:
        """Set a session's state."""
        if if_none_match not in (None, "*"):
            raise InvalidQueryError('if_none_match must be None or "*".')
        headers = {**_if_match_header(if_match), "content-type": "application/json"}
        if if_none_match:
            headers["if-none-match"] = if_none_match
        query = {"mode": "replace" if replace else None}
        return self._write("PUT", _session_path(session_key), _read_put, query, headers, _encode(patch), **terms)

    def end(
        self, session_key: str, mode: Mode, *, if_match: IfMatch | None, **terms: Unpack[WriteTerms]
    ) -> Call[Effect]:
        """Reset or delete a session."""
        headers = _if_match_header(if_match)
        return self._write("DELETE", _session_path(session_key), _read_effect, {"mode": mode}, headers, **terms)

    def switch(self, session_key: str, override: str, on: bool, **terms: Unpack[WriteTerms]) -> Call[Effect]:
        """Switch one published mock on or off."""
        path = f"{_session_path(session_key)}/overrides/{validate_override(override)}"
        return self._write("POST" if on else "DELETE", path, _read_effect, **terms)

    def list(self, limit: int, cursor: str | None, prefix: str | None) -> Call[SessionPage]:
        """Read one page of the live sessions."""
        prefix = None if prefix is None else validate_key_prefix(prefix)
        return self._read(_SESSIONS, _read_page, limit=validate_limit(limit), cursor=cursor, prefix=prefix)

    def end_prefix(self, prefix: str, mode: Mode, **terms: Unpack[WriteTerms]) -> Call[BulkResult]:
        """Reset or delete up to 1,000 sessions whose keys begin with a prefix."""
        query = {"prefix": validate_key_prefix(prefix), "mode": mode}
        return self._write("DELETE", _SESSIONS, _read_bulk, query, **terms)

    def scenarios(self, limit: int, search: str | None, before: str | None) -> Call[ScenarioPage]:
        """Read one page of the environment's scenarios."""
        read = _reader_of(ScenarioPage)
        return self._read(f"{BASE_PATH}/scenarios", read, limit=validate_limit(limit), search=search, before=before)

    def views(self) -> Call[ViewListDocument]:
        """Read the environment's live views."""
        return self._read(f"{BASE_PATH}/views", _reader_of(ViewListDocument))

    def _read(self, path: str, read: Callable[[Answer], T], **query: str | int | None) -> Call[T]:
        return Call(method="GET", path=path, query=self._query(**query), read=read)

    def _write(
        self,
        method: Literal["PUT", "POST", "DELETE"],
        path: str,
        read: Callable[[Answer], T],
        query: Mapping[str, str | None] = {},
        headers: Mapping[str, str] = {},
        content: bytes | None = None,
        *,
        views: int = 0,
        wait: bool = True,
        replicas: int | None = None,
    ) -> Call[T]:
        return Call(
            method=method,
            path=path,
            # 0 replicas is a number too: the gateway's own may be higher.
            query=self._query(**query, views=views, replicas=None if replicas is None else str(replicas)),
            headers=headers if wait else {"prefer": "respond-async", **headers},
            content=content,
            read=read,
        )

    def _query(self, **parameters: str | int | None) -> dict[str, str]:
        named = {"project": self.project, "environment": self.environment, **parameters}
        return {name: str(value) for name, value in named.items() if value not in (None, 0)}


class _Page(Struct, frozen=True, rename="camel"):
    sessions: tuple[SessionEntry, ...]
    next_cursor: str | None


_encode = msgspec.json.Encoder().encode

_ETAG = re.compile(r'(?:W/)?"(\d+)"\Z')  # a proxy that compresses makes it weak
_COUNT = re.compile(r"(\w+)=(\d+)")
_DURATION = re.compile(r"(\w+);dur=([\d.]+)")


def _session_path(session_key: str) -> str:
    key = quote(validate_session_key(session_key, shorten_session_key), safe="")
    # Otherwise a dot segment may be removed from the path on the way.
    return f"{_SESSIONS}/{key.replace('.', '%2E') if key in ('.', '..') else key}"


def _if_match_header(if_match: IfMatch | None) -> dict[str, str]:
    if if_match is None or if_match == "*":
        return {"if-match": "*"} if if_match else {}
    revisions = if_match if isinstance(if_match, Sequence) else (if_match,)
    if not revisions or not all(type(revision) is int for revision in revisions):
        raise InvalidQueryError('if_match must be a revision, several of them, or "*".')
    return {"if-match": ", ".join(f'"{revision}"' for revision in revisions)}


def _reader_of(kind: type[T]) -> Callable[[Answer], T]:
    return lambda answer: msgspec.json.decode(answer.content, type=kind)


def _read_put(answer: Answer) -> Session:
    return structs.replace(_read_session(answer), effect=_read_effect(answer))


def _read_session(answer: Answer) -> Session:
    told = answer.headers.get
    by = told("session-modified-by")
    return _session(
        msgspec.json.decode(answer.content, type=SessionDocument),
        revision=read_revision(answer),
        expires_at=_time(told("session-expires")) or 0,
        details=SessionDetails(
            modified_at=_time(told("session-modified")),
            modified_by=None if by is None else unquote(by),
            looked_up_at=_time(told("session-looked-up")),
        ),
    )


def _read_page(answer: Answer) -> SessionPage:
    page = msgspec.json.decode(answer.content, type=_Page)
    return SessionPage(tuple(map(_listed, page.sessions)), page.next_cursor)


def _listed(entry: SessionEntry) -> Session:
    return _session(
        entry,
        revision=entry.revision,
        created_at=_time(entry.created_at) or 0,
        expires_at=_time(entry.expires_at) or 0,
        details=SessionDetails(
            modified_at=_time(entry.modified_at),
            modified_by=entry.modified_by,
            looked_up_at=_time(entry.looked_up_at),
        ),
    )


def _session(document: SessionDocument, **more: Any) -> Session:
    return Session(
        project=document.project,
        environment=document.environment,
        session_key=document.session_key,
        label=document.label,
        scenario=document.scenario,
        overrides=document.overrides,
        global_delay_ms=document.global_delay_ms,
        global_delay_max_ms=document.global_delay_max_ms,
        last_seen_at=parse_time(document.last_seen_at),
        **more,
    )


def _time(text: str | None) -> int | None:
    return None if text is None else parse_time(text)


def read_revision(answer: Answer) -> int:
    """The revision in an answer's ETag; 0 if it has none."""
    match = _ETAG.match(answer.headers.get("etag", ""))
    return int(match[1]) if match else 0


def _read_bulk(answer: Answer) -> BulkResult:
    return structs.replace(msgspec.json.decode(answer.content, type=BulkResult), effect=_read_effect(answer))


def read_confirmed(answer: Answer) -> int:
    """How many live views confirmed a write."""
    return _counts(answer).get("confirmed", 0)


def read_replicas(answer: Answer) -> int:
    """How many replicas have a write that waited for some."""
    text = answer.headers.get("session-replicas", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _counts(answer: Answer) -> dict[str, int]:
    return {name: int(count) for name, count in _COUNT.findall(answer.headers.get("session-views", ""))}


def _read_effect(answer: Answer) -> Effect:
    """How a write took effect."""
    seconds = {name: float(ms) / 1000 for name, ms in _DURATION.findall(answer.headers.get("server-timing", ""))}
    return Effect(
        revision=read_revision(answer),
        confirmed=read_confirmed(answer),
        expired=_counts(answer).get("expired", 0),
        waited="session-views" in answer.headers,
        commit_s=seconds.get("commit", 0.0),
        effective_s=seconds.get("effective", 0.0),
        replicas=read_replicas(answer),
        durable_s=seconds.get("durable", 0.0),
    )
