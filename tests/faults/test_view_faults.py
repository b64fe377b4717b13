"""Views under faults and constant writes: each is stale during the fault, and equals Redis soon after.

Every test has a process that writes all the time, and a view of each driver behind a relay that can break the network.
test_guarantee.py checks that no write returns before every fresh view serves it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..conftest import require_redis_server
from ..support.adapter import Backend, Driver
from ..support.churn import KEYS
from ..support.coverage import unmeasured
from ..support.polling import PATIENCE_S, eventually
from ..support.redis_server import RedisServer
from ..support.relay import Relay

LEASE_S = 1.0
#: Seconds after a fault until a view must be right again, and what a busy machine may add.
RIGHT_WITHIN_S = 3.0
_NOISE_S = 7.0

ROOT = Path(__file__).parents[2]

Held = dict[str, tuple[str | None, tuple[str, ...], int, int]]


@contextmanager
def run_module(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run one of the programs of tests/support; it has started when it prints a line."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.support.{name}", *arguments],
        cwd=ROOT,
        env=unmeasured(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), f"{name} begins"
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> list[str]:
    """Let a program finish; return the lines that it printed."""
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return output.splitlines()


class Scene:
    """A Redis with a writer, and a view of it behind a relay."""

    def __init__(self, server: RedisServer, relay: Relay, writer: subprocess.Popen[str], view: Any) -> None:
        self.server = server
        self.relay = relay
        self.writer = writer
        self.view = view
        self.raw: Any = server.client(decode_responses=True)

    def held(self) -> Held:
        sessions = {key: self.view.peek(key) for key in KEYS}
        return {key: (s.label, s.overrides, s.revision, s.expires_at) for key, s in sessions.items() if s is not None}

    def stored(self) -> Held:
        found: Held = {}
        for key in KEYS:
            fields: dict[str, str] = self.raw.hgetall(f"ss:{{checkout}}:staging:s:{key}")
            if fields:
                overrides = tuple(json.loads(fields.get("overrides", "[]")))
                found[key] = (fields.get("label"), overrides, int(fields["rev"]), int(fields["expiresAt"]))
        return found

    async def is_right_again(self) -> None:
        """After the fault: the view becomes fresh again while writes continue, and then it equals Redis."""
        await self.is_fresh_again()
        end(self.writer)
        await eventually(lambda: self.view.fresh and self.held() == self.stored(), "the view equals Redis")

    async def is_fresh_again(self) -> None:
        await eventually(lambda: self.view.fresh, "the view is in touch again", RIGHT_WITHIN_S + _NOISE_S)
        revision = self.view.stats.revision
        await eventually(lambda: self.view.stats.revision > revision, "it follows")

    async def is_out_of_touch_for(self, seconds: float) -> None:
        """The view becomes stale within a lease, and stays stale while the fault lasts."""
        await eventually(lambda: not self.view.fresh, "the view knows", LEASE_S + _NOISE_S)
        until = time.monotonic() + seconds
        held = len(self.held())
        assert held > 0
        while time.monotonic() < until:
            assert not self.view.fresh
            assert len(self.held()) == held, "it serves on what it has"
            await asyncio.sleep(0.01)


@pytest.fixture
def redis_options() -> dict[str, str]:
    return {}


@pytest.fixture
def server(redis_options: dict[str, str]) -> Iterator[RedisServer]:
    require_redis_server()
    with RedisServer(**redis_options) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
async def scene(driver: Driver, server: RedisServer) -> AsyncIterator[Scene]:
    with run_module("churn", server.url) as writer, Relay(server.port) as relay:
        backend = Backend(driver, server, "ss")
        async with (
            backend.store_at(relay.url, lease_s=LEASE_S, deadline_s=1.0) as store,
            store.environment("checkout", "staging").view() as view,
        ):
            scene = Scene(server, relay, writer, view)
            await eventually(lambda: len(scene.held()) > 10, "there is something to serve")
            yield scene
            scene.raw.close()
        backend.close()


def kill_connections(scene: Scene, kind: str) -> None:
    scene.raw.client_kill_filter(_type=kind, skipme=True)


WITH_DATA = pytest.mark.parametrize("redis_options", [{"appendonly": "yes", "appendfsync": "always"}])


async def test_recovers_from_killed_subscribers(scene: Scene) -> None:
    for number in range(1, 4):
        kill_connections(scene, "pubsub")
        await eventually(lambda number=number: scene.view.stats.resyncs >= number)  # type: ignore[misc]
    await scene.is_right_again()


async def test_recovers_from_killed_connections(scene: Scene) -> None:
    kill_connections(scene, "normal")
    kill_connections(scene, "pubsub")
    await scene.is_right_again()


async def test_recovers_from_forgotten_scripts(scene: Scene) -> None:
    for _ in range(5):
        scene.raw.script_flush()
        await asyncio.sleep(0.1)
    await scene.is_right_again()
    assert scene.view.stats.resyncs == 0


async def test_recovers_from_a_flush(scene: Scene) -> None:
    scene.raw.flushall()
    await eventually(lambda: scene.view.stats.resyncs >= 1)
    await scene.is_right_again()


async def test_recovers_from_a_flush_without_writes(scene: Scene) -> None:
    # Given no message that reveals the flush
    end(scene.writer)
    await eventually(lambda: scene.held() == scene.stored())

    scene.raw.flushall()

    await eventually(lambda: scene.held() == {}, "the view is empty", RIGHT_WITHIN_S + _NOISE_S)
    await eventually(lambda: scene.view.fresh, "the view is in touch again", RIGHT_WITHIN_S + _NOISE_S)


@WITH_DATA
async def test_recovers_from_a_restart_with_its_data(scene: Scene) -> None:
    scene.server.kill()
    await scene.is_out_of_touch_for(0.5)
    scene.server.start()
    await scene.is_right_again()


async def test_recovers_from_a_restart_without_its_data(scene: Scene) -> None:
    scene.server.kill()
    await scene.is_out_of_touch_for(0.5)
    scene.server.start()
    await scene.is_right_again()


async def test_recovers_from_a_hanging_redis(scene: Scene) -> None:
    scene.server.pause()
    try:
        await scene.is_out_of_touch_for(1.2)
    finally:
        scene.server.resume()
    await scene.is_right_again()


async def test_recovers_from_a_short_hang(scene: Scene) -> None:
    scene.server.pause()
    await asyncio.sleep(0.3)
    scene.server.resume()
    await scene.is_right_again()


async def test_recovers_from_a_silent_network(scene: Scene) -> None:
    # Given connections that stay open, and carry nothing in either direction
    scene.relay.set(to_server="hold", to_client="hold")
    await scene.is_out_of_touch_for(1.5)
    scene.relay.set()
    await scene.is_right_again()


async def test_recovers_from_lost_answers_and_messages(scene: Scene) -> None:
    scene.relay.set(to_client="drop")
    await scene.is_out_of_touch_for(1.5)
    scene.relay.set()
    await scene.is_right_again()


async def test_recovers_from_lost_bytes(scene: Scene) -> None:
    # Given a connection that loses a moment's bytes: some messages, or a part of one
    for _ in range(3):
        scene.relay.set(to_client="drop")
        scene.relay.wait_for("to_client")
        scene.relay.set()
        await asyncio.sleep(0.1)
    await scene.is_right_again()
    assert scene.view.stats.resyncs >= 1


async def test_recovers_from_refused_connections(scene: Scene) -> None:
    scene.relay.refuse()
    await scene.is_out_of_touch_for(1.0)
    scene.relay.accept()
    await scene.is_right_again()


async def test_recovers_from_an_output_buffer_limit(scene: Scene) -> None:
    # Given a limit below the size of one large message
    scene.raw.config_set("client-output-buffer-limit", "pubsub 8192 0 0")
    channel = "ss:{checkout}:staging:changes"

    for number in range(1, 4):
        assert scene.raw.spublish(channel, "x" * 1_000_000) >= 0
        await eventually(lambda number=number: scene.view.stats.resyncs >= number)  # type: ignore[misc]
        await scene.is_fresh_again()

    await scene.is_right_again()


async def test_recovers_from_meaningless_messages(scene: Scene) -> None:
    payloads = [b"", b"garbage", b'{"type":"set"}', b'{"type":"other","rev":1}', b"\xff\xfe", b"[" * 100_000]
    for number, payload in enumerate(payloads, 1):
        scene.raw.spublish("ss:{checkout}:staging:changes", payload)
        await eventually(lambda number=number: scene.view.stats.resyncs >= number)  # type: ignore[misc]
    await scene.is_right_again()


def test_recovers_from_a_stopped_process(driver: Driver, server: RedisServer) -> None:
    with (
        run_module("churn", server.url) as writer,
        run_module("bystander", driver, server.url, str(LEASE_S)) as bystander,
    ):
        # When it is stopped for longer than a lease, twice
        away = []
        for _ in range(2):
            os.kill(bystander.pid, signal.SIGSTOP)
            time.sleep(1.2 * LEASE_S)
            os.kill(bystander.pid, signal.SIGCONT)
            assert bystander.stdout is not None
            away.append(json.loads(bystander.stdout.readline()))
        end(writer)
        *more, report = [json.loads(line) for line in end(bystander)]

    # Then its first look-up afterwards was stale, and in the end the view equals Redis
    assert not any(line["fresh"] for line in away + more)
    with server.client(decode_responses=True) as raw:
        stored = {key: raw.hget(f"ss:{{checkout}}:staging:s:{key}", "rev") for key in KEYS}
    assert report["held"] == {key: int(rev) for key, rev in stored.items() if rev is not None}


async def test_a_repeated_put_returns_when_its_new_expiry_is_in_effect(driver: Driver, server: RedisServer) -> None:
    backend = Backend(driver, server, "ss")
    options: dict[str, Any] = {"ttl_s": 5.0, "lease_s": LEASE_S, "deadline_s": 1.0}
    with Relay(server.port) as relay:
        async with (
            backend.store(**options) as writer,
            backend.store_at(relay.url, **options) as store,
            store.environment("checkout", "staging").view() as view,
        ):
            staging = writer.environment("checkout", "staging")
            session = await staging.put("ci-42", label="x")
            assert view.peek("ci-42") == session

            # Given a view whose link is silent, and which is still fresh
            relay.set(to_client="hold")
            # When the same PUT is sent again, after more than a tenth of the TTL
            await asyncio.sleep(0.6)
            repeated = await staging.put("ci-42", label="x")

            # Then the view is not fresh, or has the new expiry
            assert repeated.expires_at > session.expires_at
            assert not view.fresh or view.peek("ci-42") == repeated
            relay.set()
