"""Errors over HTTP: their codes, their statuses and their form.

The body of an error is ``{"error": "a sentence for a person", "code": "snake_case"}``. The library's errors have a code
each; the gateway raises `RequestError` with a code of its own. `guard` sends bad_request and too_many_connections, to a
client whose request never reached the app.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

import msgspec
from msgspec import Struct

#: The HTTP status of each code.
STATUS: dict[str, int] = {
    "bad_request": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "scope_mismatch": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "quota_exceeded": 409,
    "precondition_failed": 412,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "environment_required": 422,
    "invalid_body": 422,
    "invalid_mode": 422,
    "invalid_override": 422,
    "invalid_query": 422,
    "invalid_scenario": 422,
    "invalid_session_key": 422,
    "project_required": 422,
    "rate_limited": 429,
    "internal_error": 500,
    "not_durable": 503,
    "not_effective": 503,
    "outcome_unknown": 503,
    "store_unavailable": 503,
    "too_few_views": 503,
    "too_many_connections": 503,
}

#: Seconds after which a client should retry a 503.
RETRY_AFTER_S = 1

#: Bytes of a request line and headers, or of trailers. One read of the socket may exceed it.
MAX_HEAD_BYTES = 64 * 1024
#: Seconds from the first byte of a request to the end of its body.
ARRIVAL_S = 60.0

# The sentences of `guard`.
NOT_HTTP = (
    f"The request is not valid HTTP/1.1, or its line and headers exceed {MAX_HEAD_BYTES // 1024} KiB; "
    "percent-encode special characters in the path."
)
TOO_MANY_CONNECTIONS = "The gateway has too many open connections; close some or reuse them, and try again."
TOO_SLOW = f"The request did not arrive within {ARRIVAL_S:g} seconds; send it again, faster."


class ErrorDocument(Struct, frozen=True):
    """The body of every error."""

    error: str
    code: str


class RequestError(Exception):
    """The gateway refuses a request.

    Parameters
    ----------
    code : str
        A key of `STATUS`.
    sentence : str
        What happened, and what to do.
    headers : mapping, optional
        Headers of the response.
    """

    def __init__(self, code: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.headers = headers or {}


class RefusedError(Exception):
    """The server has refused the next request, within the app's last send, which has succeeded."""


_encode = msgspec.json.Encoder().encode


def error_body(code: str, sentence: str) -> bytes:
    """Encode an error as the API shows it."""
    return _encode(ErrorDocument(sentence, code))


def refusal(code: str, sentence: str, request_id: str, *, to_head: bool = False) -> bytes:
    """Encode a whole HTTP/1.1 response, for a request that is not whole; one to HEAD has no content."""
    status = HTTPStatus(STATUS[code])
    body = error_body(code, sentence)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"date: {formatdate(usegmt=True)}",
        f"x-request-id: {request_id}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append(f"retry-after: {RETRY_AFTER_S}")
    head = "\r\n".join([*lines, "", ""]).encode("ascii")
    return head if to_head else head + body


def new_request_id() -> str:
    """Make an id for a request that brings none."""
    return os.urandom(8).hex()
