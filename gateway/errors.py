"""What the gateway itself refuses, and how every error looks over HTTP.

::

    SessionStoreError                       the library's root: its errors have a code, too
    └── GatewayError
        ├── BadRequestError                 400  not HTTP that can be read
        ├── InvalidJSONError                400
        ├── UnauthorizedError               401
        ├── ScopeMismatchError              403
        ├── RouteNotFoundError              404
        ├── MethodNotAllowedError           405
        ├── BodyTooLargeError               413
        ├── UnsupportedMediaTypeError       415
        ├── InvalidBodyError                422
        ├── InvalidModeError                422
        ├── ProjectRequiredError            422
        ├── EnvironmentRequiredError        422
        └── RateLimitedError                429

An error's body is ``{"error": "a sentence for a person", "code": "snake_case"}``; `STATUS` has each code's status.
"""

from __future__ import annotations

import os
from binascii import hexlify
from typing import ClassVar

import msgspec
from msgspec import Struct

from sessionstore.errors import SessionStoreError

__all__ = [
    "NOT_HTTP",
    "STATUS",
    "BadRequestError",
    "BodyTooLargeError",
    "EnvironmentRequiredError",
    "ErrorDocument",
    "GatewayError",
    "Headers",
    "InvalidBodyError",
    "InvalidJSONError",
    "InvalidModeError",
    "MethodNotAllowedError",
    "ProjectRequiredError",
    "RateLimitedError",
    "RouteNotFoundError",
    "ScopeMismatchError",
    "UnauthorizedError",
    "UnsupportedMediaTypeError",
    "new_request_id",
    "refusal",
    "error_body",
    "error_headers",
]

#: Response headers as ASGI takes them: names in lower case.
Headers = tuple[tuple[bytes, bytes], ...]

#: The HTTP status of each code.
STATUS: dict[str, int] = {
    "bad_request": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "scope_mismatch": 403,
    "not_found": 404,
    "method_not_allowed": 405,
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
    "store_unavailable": 503,
}

#: Seconds after which a client should try again where Redis is away.
RETRY_AFTER_S = 1


class ErrorDocument(Struct, frozen=True):
    """The body of every error."""

    error: str
    code: str


#: What is said of a request that can't be read.
NOT_HTTP = "The request is not HTTP that can be read; percent-encode every special character of the path."


class GatewayError(SessionStoreError):
    """An error of a request, rather than of a session."""

    #: what its response carries besides the usual headers
    headers: Headers = ()


class BadRequestError(GatewayError):
    """The request is not HTTP that can be read."""

    code: ClassVar[str] = "bad_request"


class InvalidJSONError(GatewayError):
    """The body is not JSON."""

    code: ClassVar[str] = "invalid_json"


class UnauthorizedError(GatewayError):
    """No key, or one that does not open anything. One sentence for all cases: it must not tell which keys are near."""

    code: ClassVar[str] = "unauthorized"
    headers: Headers = ((b"www-authenticate", b'Bearer realm="sessions"'),)

    def __init__(self) -> None:
        super().__init__("Send a valid API key, as in 'Authorization: Bearer fmk_…'.")


class ScopeMismatchError(GatewayError):
    """The key is for one project, and the call names another."""

    code: ClassVar[str] = "scope_mismatch"


class RateLimitedError(GatewayError):
    """The key has made more requests than it may."""

    code: ClassVar[str] = "rate_limited"


class RouteNotFoundError(GatewayError):
    """There is no such route."""

    code: ClassVar[str] = "not_found"


class MethodNotAllowedError(GatewayError):
    """The route does not take this method; `allow` lists those that it takes."""

    code: ClassVar[str] = "method_not_allowed"

    def __init__(self, allow: str) -> None:
        super().__init__(f"This route takes {allow} only.")
        self.headers = ((b"allow", allow.encode()),)


class BodyTooLargeError(GatewayError):
    """The body is longer than a session can need."""

    code: ClassVar[str] = "body_too_large"


class UnsupportedMediaTypeError(GatewayError):
    """The body is not declared to be JSON, or is encoded."""

    code: ClassVar[str] = "unsupported_media_type"


class InvalidBodyError(GatewayError):
    """The body is JSON, and not what the route takes."""

    code: ClassVar[str] = "invalid_body"


class InvalidModeError(GatewayError):
    """A DELETE's mode is none of those that there are."""

    code: ClassVar[str] = "invalid_mode"


class ProjectRequiredError(GatewayError):
    """The key is for all projects, and the call names none."""

    code: ClassVar[str] = "project_required"


class EnvironmentRequiredError(GatewayError):
    """The call names no environment, and the project does not have exactly one."""

    code: ClassVar[str] = "environment_required"


_encode = msgspec.json.Encoder().encode


def error_body(code: str, sentence: str) -> bytes:
    """An error as the API shows it."""
    return _encode(ErrorDocument(sentence, code))


def refusal(sentence: str, request_id: bytes) -> bytes:
    """A whole answer, head and body, to what is no request."""
    body = error_body(BadRequestError.code, sentence)
    head = (
        b"HTTP/1.1 400 Bad Request\r\nx-request-id: %b\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n"
    )
    return head % (request_id, len(body)) + body


def new_request_id() -> bytes:
    """An id for a request that brings none."""
    return hexlify(os.urandom(8))


def error_headers(error: SessionStoreError) -> Headers:
    """What an error's response carries besides the usual headers."""
    if error.code == "store_unavailable":
        return ((b"retry-after", b"%d" % RETRY_AFTER_S),)
    return error.headers if isinstance(error, GatewayError) else ()
