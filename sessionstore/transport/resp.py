"""Commands as Redis reads them, its replies as they arrive, and the answers of several scripts decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import InvalidResponse

from ..errors import SessionStoreError
from ..protocol.calls import Call
from . import redis_internals
from .errors import translate


def evalsha(call: Call[Any]) -> tuple[Any, ...]:
    """The command that runs a script from Redis's cache."""
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)


def evaluate(call: Call[Any]) -> tuple[Any, ...]:
    """The command that runs a script and adds it to Redis's cache."""
    return ("EVAL", call.script.text, len(call.keys), *call.keys, *call.args)


def pack(parts: Sequence[str | int]) -> bytes:
    """One command as Redis reads it. redis-py's own packing takes five times as long: it joins bytes at each part."""
    texts = [part if type(part) is str else str(part) for part in parts]
    packed = "".join([f"*{len(texts)}\r\n", *[f"${len(text)}\r\n{text}\r\n" for text in texts]])
    if packed.isascii():
        return packed.encode()
    coded = [text.encode() for text in texts]
    return b"".join([b"*%d\r\n" % len(coded), *[b"$%d\r\n%b\r\n" % (len(text), text) for text in coded]])


class ReplyParser:
    """Cuts the bytes that one connection receives into replies of RESP2.

    A bulk string is bytes, an array a list, an error reply an exception. redis-py's own parsers read line by line,
    which takes longer than applying a change.
    """

    def __init__(self) -> None:
        #: what has arrived of an incomplete reply, its length, and the length that it takes to go on
        self._chunks: list[bytes] = []
        self._arrived = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[Any]:
        """Take what has arrived next; returns the replies that are complete.

        Raises
        ------
        InvalidResponse
            It is not RESP2.
        """
        if self._chunks:
            self._chunks.append(data)
            self._arrived += len(data)
            if self._arrived < self._needed:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
        replies: list[Any] = []
        start = 0
        try:
            while start < len(data):
                reply, start = _parse(data, start)
                replies.append(reply)
        except _IncompleteError as exc:
            self._chunks.append(data[start:])
            self._arrived = len(data) - start
            self._needed = exc.needed - start
        except ValueError as exc:
            raise InvalidResponse("Redis sent a malformed number.") from exc
        return replies


class _IncompleteError(Exception):
    """The reply goes on: `needed` bytes of the data are needed, at least."""

    def __init__(self, needed: int) -> None:
        self.needed = needed


def _parse(data: bytes, start: int) -> tuple[Any, int]:
    """Parse the reply at `start`; returns it, and where the next one begins."""
    end = data.find(b"\r\n", start)
    if end < 0:
        raise _IncompleteError(len(data) + 1)
    kind, line, after = data[start : start + 1], data[start + 1 : end], end + 2
    if kind == b"$" or kind == b"*":
        size = int(line)
        if size < 0:
            return None, after
        if kind == b"*":
            items = []
            for _ in range(size):
                item, after = _parse(data, after)
                items.append(item)
            return items, after
        end = after + size
        if len(data) < end + 2:
            raise _IncompleteError(end + 2)
        return data[after:end], end + 2
    if kind == b"+":
        return line, after
    if kind == b":":
        return int(line), after
    if kind == b"-":
        return redis_internals.parse_error(line.decode("utf-8", "replace")), after
    raise InvalidResponse("Redis sent a reply of an unknown kind.")


def decode_all(calls: Sequence[Call[Any]], payloads: Sequence[Any]) -> list[Any]:
    """Decode the answers of several calls; a failed call's error, translated or not, takes the place of its answer."""
    results: list[Any] = []
    for call, payload in zip(calls, payloads, strict=True):
        if isinstance(payload, SessionStoreError):
            results.append(payload)
            continue
        if isinstance(payload, Exception):
            results.append(translate(payload, call, sent=True))
            continue
        try:
            results.append(call.decode(payload))
        except SessionStoreError as exc:
            results.append(exc)
    return results
