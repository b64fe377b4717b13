"""What RFC 9110 and 9112 allow: a reader of requests that knows where a server has a choice, and a judge of answers.

It shares no code with the gateway or h11. A request is one of:

- valid: the server must take it as this reader does;
- doubtful: the server may refuse it, or take it as this reader does;
- invalid: the server must refuse it, or close the connection.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "Request", "judge", "read_answers", "read_requests"]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"(?:/|https?://)[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]*|\*")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)([ \t]*)((?:;[^\n]*)?)")
_CONTROLS = re.compile(rb"[\x01-\x08\x0b-\x1f\x7f]")

#: Bytes of a head, and digits of a length, that a server may find too many.
_MOST_HEAD, _MOST_DIGITS = 60_000, 15


@dataclass
class Request:
    """One request as the RFC reads it."""

    method: bytes = b""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    #: all of it has come
    whole: bool = False
    doubtful: bool = False
    #: why it is invalid, and whether the head was valid and its body is not
    flaw: str = ""
    in_body: bool = False
    #: HTTP/1.0
    old: bool = False
    #: the server must close after it; None: it may
    closes: bool | None = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.headers if known == name]

    def members(self, name: bytes) -> list[bytes]:
        """The members of a header that is a list, in lower case."""
        return [member.strip(b" \t").lower() for value in self.values(name) for member in value.split(b",")]


class _Invalid(Exception):  # noqa: N818  the request is
    pass


class _Unfinished(Exception):  # noqa: N818  the bytes end early
    pass


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.position = 0

    def line(self, request: Request) -> bytes:
        """A line of a head; a line feed alone may end it (RFC 9112, 2.2)."""
        end = self.raw.find(b"\n", self.position)
        if end < 0:
            raise _Unfinished
        line = self.raw[self.position : end]
        self.position = end + 1
        if line.endswith(b"\r"):
            line = line[:-1]
        else:
            request.doubtful = True
        if b"\r" in line or b"\0" in line:
            # Invalid, or a space (9112, 2.2; 9110, 5.5).
            request.doubtful = True
            line = line.replace(b"\r", b" ").replace(b"\0", b" ")
        return line

    def exactly(self, count: int) -> bytes:
        data = self.raw[self.position : self.position + count]
        self.position += len(data)
        if len(data) < count:
            raise _Unfinished
        return data

    def chunk_line(self) -> bytes:
        """A line of the chunked coding, which only CRLF ends."""
        end = self.raw.find(b"\r\n", self.position)
        if end < 0:
            # A server may see at once that the rest can't become a chunk.
            raise _Unfinished
        line = self.raw[self.position : end]
        self.position = end + 2
        return line


def read_requests(raw: bytes) -> list[Request]:
    """Read a client's bytes, up to the request after which nothing may be read."""
    reader, requests = _Reader(raw), []
    while reader.position < len(raw):
        request = Request()
        requests.append(request)
        begin = reader.position
        try:
            _read_head(reader, request)
            request.doubtful |= reader.position - begin > _MOST_HEAD
            request.in_body = True
            _read_body(reader, request)
            request.whole = True
        except _Invalid as exc:
            request.flaw = str(exc)
        except _Unfinished:
            request.doubtful |= not request.in_body
        if request.closes or not request.whole:
            break
    return requests


def _read_head(reader: _Reader, request: Request) -> None:
    line = reader.line(request)
    while not line:
        request.doubtful = True  # a server should skip one empty line, at least (9112, 2.2)
        line = reader.line(request)
    _read_request_line(line, request)
    fields: list[tuple[bytes, bytes]] = []
    dropping = False
    while line := reader.line(request):
        if line[:1] in (b" ", b"\t"):
            request.doubtful = True
            if not fields:
                dropping = True  # 9112, 2.2
            elif not dropping:
                name, value = fields[-1]
                fields[-1] = (name, (value + b" " + line.strip(b" \t")).strip(b" \t"))  # 9112, 5.2
            continue
        dropping = False
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _Invalid("a field line")  # 9112, 5 and 5.1
        if _CONTROLS.search(value):
            request.doubtful = True
        fields.append((name.lower(), value.strip(b" \t")))
    request.headers = fields
    _check_host(request)
    connection = request.members(b"connection")
    if b"close" in connection:
        request.closes = True


def _read_request_line(line: bytes, request: Request) -> None:
    words = line.split(b" ")
    if len(words) != 3:
        request.doubtful = True
        words = line.split()  # 9112, 3: by white space, if not strictly
    if len(words) != 3:
        raise _Invalid("the request line")
    request.method, request.target, version = words
    match = _VERSION.fullmatch(version)
    if not match or not _TOKEN.fullmatch(request.method):
        raise _Invalid("the method or version")
    if not _TARGET.fullmatch(request.target):
        request.doubtful = True
    if match[1] != b"1":
        request.doubtful, request.closes = True, None
    elif match[2] == b"0":
        request.old, request.closes = True, None


def _check_host(request: Request) -> None:
    hosts = request.values(b"host")
    if len(hosts) > 1 or any(not _HOST.fullmatch(host) for host in hosts):
        raise _Invalid("Host")  # 9112, 3.2
    if not hosts and request.closes is not None:
        raise _Invalid("no Host")


def _read_body(reader: _Reader, request: Request) -> None:
    codings, lengths = request.members(b"transfer-encoding"), request.members(b"content-length")
    try:
        if codings:
            _check_codings(codings, request)
            if lengths or request.old:
                request.doubtful, request.closes = True, True  # 9112, 6.1
        elif lengths:
            length = _check_lengths(lengths, request)
    except _Invalid:
        request.in_body = False
        raise
    if codings:
        _read_chunks(reader, request)
    elif lengths:
        request.body = reader.exactly(length)


def _check_codings(codings: list[bytes], request: Request) -> None:
    """Only chunked is known, once and last (9112, 6.1 and 6.3)."""
    if [coding for coding in codings if coding] != [b"chunked"]:
        raise _Invalid("Transfer-Encoding")
    if len(codings) > 1:
        request.doubtful = True  # empty members (9110, 5.6.1)


def _check_lengths(lengths: list[bytes], request: Request) -> int:
    if not all(re.fullmatch(rb"[0-9]+", length) for length in lengths) or len(set(lengths)) > 1:
        raise _Invalid("Content-Length")  # 9112, 6.3
    if len(lengths) > 1 or len(lengths[0]) > _MOST_DIGITS:
        request.doubtful = True
    return int(lengths[0])


def _read_chunks(reader: _Reader, request: Request) -> None:
    while True:
        match = _CHUNK.fullmatch(reader.chunk_line())
        if not match:
            raise _Invalid("a chunk's line")
        if match[2] or b"\r" in match[3] or b"\0" in match[3]:
            request.doubtful = True
        if len(match[1]) > _MOST_DIGITS:
            request.doubtful = True
        size = int(match[1], 16)
        if not size:
            break
        request.body += reader.exactly(size)
        if reader.exactly(2) != b"\r\n":
            raise _Invalid("a chunk's end")
    while line := reader.line(request):
        name, colon, _ = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            request.doubtful = True
        elif not colon or not _TOKEN.fullmatch(name):
            raise _Invalid("a trailer")
        # No sender may put these there (9110, 6.5.1).
        request.doubtful |= name.lower() in (b"content-length", b"transfer-encoding", b"host")


@dataclass
class Answer:
    """One answer of a server."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    document: Any = None

    @property
    def code(self) -> str:
        """The code of an error; empty for a success."""
        return str(self.document["code"]) if self.status >= 400 else ""

    @property
    def refuses(self) -> bool:
        """Whether it refuses the request as HTTP."""
        return self.code == "bad_request"


_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*")
_FIELD = re.compile(r"([A-Za-z0-9-]+): ([!-~](?:[ -~]*[!-~])?)?")

#: The statuses of each error code, as docs/api.md lists them.
_STATUSES = {
    "bad_request": 400,
    "invalid_json": 400,
    "unauthorized": 401,
    "scope_mismatch": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "precondition_failed": 412,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "internal_error": 500,
    **dict.fromkeys(("not_effective", "outcome_unknown", "store_unavailable", "too_few_views"), 503),
    "too_many_connections": 503,
}


class WrongAnswerError(Exception):
    """An answer is not one that HTTP or the API's contract allows."""


def read_answers(received: bytes, methods: list[bytes]) -> list[Answer]:
    """Read all final answers strictly.

    Raises
    ------
    WrongAnswerError
    """
    answers: list[Answer] = []
    position = 0
    while position < len(received):
        method = methods[len(answers)] if len(answers) < len(methods) else b""
        answer, position = read_answer(received, position, method)
        if answer.status >= 200:
            answers.append(answer)
    return answers


def read_answer(received: bytes, position: int, method: bytes) -> tuple[Answer, int]:
    """Read the answer that begins at `position`; returns it, and where it ends.

    Raises
    ------
    WrongAnswerError
    """
    end = received.find(b"\r\n\r\n", position)
    if end < 0:
        raise WrongAnswerError(f"an answer breaks off: {received[position : position + 80]!r}")
    first, *lines = received[position:end].decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if not match or not all(fields):
        raise WrongAnswerError(f"an answer's head is malformed: {received[position:end]!r}")
    headers = {found[1].lower(): found[2] or "" for found in fields if found}
    if len(headers) < len(lines):
        raise WrongAnswerError(f"a header is given twice: {lines}")
    answer = Answer(int(match[1]), headers)
    position = end + 4
    if answer.status < 200:
        if answer.status == 101 or headers:
            raise WrongAnswerError(f"an interim answer says too much: {first}")
        return answer, position
    if answer.status == 304:
        return answer, position
    if "transfer-encoding" in headers or not headers.get("content-length", "").isdigit():
        raise WrongAnswerError(f"an answer has no length: {headers}")
    length = int(headers["content-length"])
    rest = received[position:]
    if method == b"HEAD" and (not rest or rest.startswith(b"HTTP/1.1 ")):
        answer.document = {"code": ""}
        if answer.status == 400:
            answer.document = {"code": "bad_request"}
        return answer, position
    answer.body = rest[:length]
    if len(answer.body) < length:
        raise WrongAnswerError(f"an answer's content breaks off after {len(answer.body)} bytes of {length}")
    check_content(answer)
    if method == b"HEAD" and not answer.refuses:
        raise WrongAnswerError("an answer to HEAD has content")
    return answer, position + length


def check_content(answer: Answer) -> None:
    """Check an answer's content against the contract.

    Raises
    ------
    WrongAnswerError
    """
    if answer.headers.get("content-type") == "application/json":
        answer.document = json.loads(answer.body)
    if not answer.headers.get("x-request-id") or "date" not in answer.headers:
        raise WrongAnswerError(f"an answer lacks its id or date: {answer.headers}")
    if answer.status < 400:
        return
    document = answer.document
    if not isinstance(document, dict) or list(document) != ["error", "code"] or "Traceback" in document["error"]:
        raise WrongAnswerError(f"an error has no envelope: {answer.body[:200]!r}")
    if answer.status != _STATUSES.get(answer.code, 422):
        raise WrongAnswerError(f"{answer.code} has the status {answer.status}")


def judge(raw: bytes, received: bytes) -> tuple[list[str], list[tuple[Request, Answer]]]:
    """Hold a server's bytes against a client's; returns the violations, and each request with its answer."""
    requests = read_requests(raw)
    try:
        answers = read_answers(received, [request.method for request in requests])
    except (WrongAnswerError, ValueError) as exc:
        return [str(exc)], []
    wrong: list[str] = []
    for i, answer in enumerate(answers):
        if i >= len(requests):
            wrong.append(f"{len(answers)} answers to {len(requests)} requests: the last is {answer.status}")
            break
        request = requests[i]
        wrong += [f"request {i}: {problem}" for problem in _judge_one(request, answer)]
        if answer.headers.get("connection") == "close" and i + 1 < len(answers):
            wrong.append(f"request {i}: more answers after connection: close")
        if (request.closes or answer.refuses) and answer.headers.get("connection") != "close":
            wrong.append(f"request {i}: the connection should close")
    if len(answers) < len(requests):
        left = requests[len(answers)]
        ended = any(answer.headers.get("connection") == "close" for answer in answers)
        if left.whole and not left.doubtful and not ended:
            wrong.append(f"request {len(answers)}: valid, and not answered")
        elif ended and all(not request.doubtful and request.closes is False for request in requests[: len(answers)]):
            wrong.append("the connection closes for no reason")
    return wrong, list(zip(requests, answers, strict=False))


def _judge_one(request: Request, answer: Answer) -> list[str]:
    if answer.refuses:
        return [] if request.doubtful or request.flaw else [f"valid, and refused: {request.method!r}"]
    if request.flaw and not request.in_body:
        return [f"invalid ({request.flaw}), and answered {answer.status}"]
    if answer.status < 300 and not request.whole and request.method not in (b"GET", b"HEAD"):
        return [f"not whole ({request.flaw or 'it breaks off'}), and answered {answer.status}"]
    return []
