"""Replies are cut out of what arrives, however it is split."""

from __future__ import annotations

import random
from typing import Any

import pytest
from redis.exceptions import InvalidResponse, MovedError, ResponseError

from sessionstore.transport.resp import ReplyParser

MESSAGE = b"*3\r\n$8\r\nsmessage\r\n$7\r\nchanges\r\n$4\r\n\r\n{}\r\n"

REPLIES: list[tuple[bytes, Any]] = [
    (MESSAGE, [b"smessage", b"changes", b"\r\n{}"]),
    (b"*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n", [b"ssubscribe", b"c", 1]),
    (b"+PONG\r\n", b"PONG"),
    (b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", [b"pong", b""]),
    (b":-7\r\n", -7),
    (b"$-1\r\n", None),
    (b"*0\r\n", []),
    (b"*2\r\n*1\r\n:1\r\n*-1\r\n", [[1], None]),
    (b"$70000\r\n" + b"x" * 70_000 + b"\r\n", b"x" * 70_000),
]


@pytest.mark.parametrize(("data", "reply"), REPLIES)
def test_one_reply(data: bytes, reply: Any) -> None:
    assert ReplyParser().feed(data) == [reply]


@pytest.mark.parametrize("seed", range(50))
def test_replies_are_the_same_however_they_are_split(seed: int) -> None:
    rng = random.Random(seed)
    sent = rng.choices(REPLIES, k=20)
    data = b"".join(part for part, _ in sent)
    largest = rng.choice([1, 3, 40, 5_000])
    parser, received = ReplyParser(), []

    while data:
        size = rng.randint(1, largest) if len(data) < 2_000 or largest > 40 else 1_000
        received += parser.feed(data[:size])
        data = data[size:]

    assert received == [reply for _, reply in sent]


def test_a_reply_is_complete_with_its_last_byte_only() -> None:
    for size in range(1, len(MESSAGE)):
        parser = ReplyParser()
        assert parser.feed(MESSAGE[:size]) == []
        assert parser.feed(MESSAGE[size:]) == [REPLIES[0][1]]


@pytest.mark.parametrize(
    ("data", "kind"), [(b"-ERR no\r\n", ResponseError), (b"-MOVED 3999 127.0.0.1:6381\r\n", MovedError)]
)
def test_an_error_is_redis_pys_exception(data: bytes, kind: type[Exception]) -> None:
    [error] = ReplyParser().feed(data)

    assert type(error) is kind


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n", b"*1\r\n:1.5\r\n", b"\r\n"])
def test_anything_else_is_no_reply(data: bytes) -> None:
    with pytest.raises(InvalidResponse):
        ReplyParser().feed(data)
