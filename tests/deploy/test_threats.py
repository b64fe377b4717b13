"""The threat model of docs/operations.md, as far as no other test shows it.

test_redis_users.py shows what a compromised proxy can't do, tests/hostile and tests/gateway/test_auth.py what a client
and a tenant can't, and tests/gateway/test_server.py how much a connection holds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import redis

from sessionstore import SessionStore

from ..support.checkout import ROOT
from ..support.gateway import AUTHORIZATION, KEY, PLACE
from ..support.gateway_process import GatewayProcess
from ..support.polling import await_true
from ..support.stub_server import StubServer
from .conftest import Guarded

#: What a compromised Redis may answer a script.
LIES = {
    "nothing": b"$-1\r\n",
    "a number": b":1\r\n",
    "an array": b"*2\r\n:1\r\n:2\r\n",
    "no JSON": b"$1\r\nx\r\n",
    "other JSON": b"$2\r\n[]\r\n",
    "an empty object": b"$2\r\n{}\r\n",
    "not UTF-8": b"$3\r\n{\xff}\r\n",
    "deep JSON": b"$100000\r\n" + b"[" * 100_000 + b"\r\n",
    "an error": b"-ERR x\r\n",
    "an error without a code": b"-\r\n",
    "no RESP": b"HTTP/1.1 200 OK\r\n\r\n",
    "a length that is none": b"$x\r\n",
    "half a reply": b"$100\r\nx",
    "two replies": b"$2\r\n{}\r\n$2\r\n{}\r\n",
    "the end": b"",
}


@pytest.fixture(scope="module")
def lying() -> Iterator[tuple[StubServer, GatewayProcess]]:
    with (
        StubServer(b":1\r\n") as stub,
        GatewayProcess(stub.url, "--deadline", "0.5s", "--rate-limit", "off", SESSIONSTORE_API_KEY=KEY) as gateway,
    ):
        yield stub, gateway


@pytest.mark.parametrize("lie", LIES)
def test_a_compromised_redis_gets_errors_only(lying: tuple[StubServer, GatewayProcess], lie: str) -> None:
    stub, gateway = lying
    stub.answer = LIES[lie]
    with httpx.Client(base_url=gateway.url, headers=AUTHORIZATION, params=PLACE, timeout=20) as client:
        for method, path in (("GET", "/sessions/a"), ("PUT", "/sessions/a"), ("GET", "/sessions"), ("GET", "/views")):
            content = "{}" if method == "PUT" else None
            headers = {"Content-Type": "application/json"}
            response = client.request(method, f"/api/v1{path}", content=content, headers=headers)
            assert response.status_code in (500, 503), response.text
            assert response.json()["code"] in ("internal_error", "store_unavailable", "outcome_unknown")
        assert client.get("/healthz").status_code == 200


def test_no_source_evaluates_data() -> None:
    dangerous = re.compile(r"\b(eval|exec|pickle|marshal|shelve|yaml|subprocess|os\.system)\b\s*[(.]|import pickle")
    sources = [path for part in ("sessionstore", "gateway") for path in (ROOT / part).rglob("*.py")]
    assert len(sources) > 50
    assert [path.name for path in sources if dangerous.search(path.read_text())] == []


def test_redis_holds_no_api_key(guarded: Guarded) -> None:
    with GatewayProcess(guarded.url("gateway")) as gateway, SessionStore.from_url(guarded.url("gateway")) as store:
        secret = store.api_keys.create("ci").secret
        for key in (KEY, secret):
            with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as client:
                client.put("/api/v1/sessions/ci-42", params=PLACE, json={"label": "x"}).raise_for_status()

        everything = [value for name in guarded.raw.scan_iter() for value in (name, _read(guarded.raw, name))]

    assert len(everything) > 10
    for key in (KEY, secret):
        assert key.removeprefix("fmk_") not in repr(everything)


def _read(raw: Any, name: bytes) -> object:
    readers: dict[bytes, Callable[[bytes], object]] = {
        b"hash": raw.hgetall,
        b"set": raw.smembers,
        b"string": raw.get,
        b"zset": lambda name: raw.zrange(name, 0, -1),
    }
    return readers[raw.type(name)](name)


def test_a_compromised_proxy_can_block_redis_until_its_script_is_killed(guarded: Guarded) -> None:
    guarded.raw.config_set("busy-reply-threshold", 50)
    with GatewayProcess(guarded.url("gateway"), "--rate-limit", "off") as gateway, gateway.client() as client:
        client.put("/sessions/ci-42", json={}).raise_for_status()
        with guarded.client("proxy-checkout") as proxy:

            def block() -> None:
                with pytest.raises(redis.ResponseError, match="killed"):
                    proxy.eval("while true do end", 0)

            blocking = threading.Thread(target=block)
            blocking.start()
            await_true(lambda: client.get("/sessions/ci-42").status_code == 503, "Redis is busy")
            assert client.get("/sessions/ci-42").json()["code"] == "store_unavailable"

            guarded.raw.script_kill()
            blocking.join()

        await_true(lambda: client.get("/sessions/ci-42").status_code == 200, "Redis serves again")
