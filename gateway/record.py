"""The gateway's record of one request."""

from __future__ import annotations

import time
from collections.abc import Mapping

from msgspec import Struct, field
from starlette.requests import Request

from sessionstore import Effect
from sessionstore.api_keys.model import ApiKey


class Write(Struct):
    """The write of a request, for the audit log; `revision` is None until it is known."""

    operation: str
    project: str
    environment: str
    session_key: str
    revision: int | None = None


class Record(Struct):
    """One request.

    Attributes
    ----------
    request_id : str
        The client's ``X-Request-Id`` if it is well-formed, else a new one.
    method : str
        As the client sent it.
    received : dict
        The request's headers, by name in lower case; the values of several lines are joined by commas.
    started_s : float
        By `time.perf_counter`.
    route : str
        The template of the matching route, never text of the client.
    status : int
        The response's, 0 before the response begins, 499 if the client disconnected before it sent its whole request.
    query : mapping
        The parameters that the call takes and the request names.
    api_key : ApiKey or None
        The record of its key, once known.
    code : str or None
        The error code of the answer.
    added : dict
        Headers for the response, whoever makes it.
    effect : Effect or None
        How the write took effect.
    write : Write or None
        The write that was sent to the store.
    corrupt : tuple of str
        Session keys whose records were found corrupt.
    """

    request_id: str
    method: str
    received: dict[str, str]
    started_s: float = field(default_factory=time.perf_counter)
    route: str = "unknown"
    status: int = 0
    query: Mapping[str, str] = {}
    api_key: ApiKey | None = None
    code: str | None = None
    added: dict[str, str] = {}
    effect: Effect | None = None
    write: Write | None = None
    corrupt: tuple[str, ...] = ()


def record_of(request: Request) -> Record:
    """Find the record that the app has made."""
    record: Record = request.scope["gateway.record"]
    return record
