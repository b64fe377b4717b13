"""The ASGI middleware, in a Starlette application."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sessionstore import AsyncSessionStore, EmbeddedServer, SessionStore, StoreClosedError
from sessionstore.contrib.asgi import SessionMiddleware
from sessionstore.replica.view import BaseView


async def show(request: Request) -> JSONResponse:
    session = request.state.mock_session
    return JSONResponse({"key": session and session.session_key, "overrides": session and session.overrides})


async def show_on_websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    session = websocket.state.mock_session
    await websocket.send_json({"key": session and session.session_key})
    await websocket.close()


def application(view: BaseView, **options: Any) -> Starlette:
    return Starlette(
        routes=[Route("/", show), WebSocketRoute("/ws", show_on_websocket)],
        middleware=[Middleware(SessionMiddleware, view=view, **options)],
    )


@pytest.fixture
async def store(embedded_server: EmbeddedServer) -> AsyncIterator[AsyncSessionStore]:
    async with AsyncSessionStore.embedded(embedded_server) as store:
        yield store


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://proxy")


async def test_a_request_has_the_session_in_its_header(store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    await staging.put("ci-42", overrides=["ovr_a"])
    await staging.put("grüße")
    async with staging.view() as view, client_of(application(view)) as client:
        for raw, key in {
            b"ci-42": "ci-42",
            b" ci-42 ": "ci-42",
            "grüße".encode(): "grüße",
            "grüße".encode("latin-1"): "grüße",
            b"ci-43": None,
            b"": None,
        }.items():
            answer = await client.get("/", headers=[(b"X-FlowMock-Session", raw)])
            assert answer.json()["key"] == key
        assert (await client.get("/")).json() == {"key": None, "overrides": None}


async def test_the_next_request_sees_a_write_that_has_returned(store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    async with staging.view() as view, client_of(application(view)) as client:
        for number in range(50):
            await staging.put("ci-42", overrides=[f"ovr_{number}"])

            answer = await client.get("/", headers={"x-flowmock-session": "ci-42"})

            assert answer.json() == {"key": "ci-42", "overrides": [f"ovr_{number}"]}


async def test_takes_another_header(store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    await staging.put("ci-42")
    async with staging.view() as view, client_of(application(view, header="X-Mock")) as client:
        assert (await client.get("/", headers={"x-mock": "ci-42"})).json()["key"] == "ci-42"
        assert (await client.get("/", headers={"x-flowmock-session": "ci-42"})).json()["key"] is None


async def test_applies_the_delay_if_the_option_is_on(store: AsyncSessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given sessions with a fixed, a random and no delay
    staging = store.environment("checkout", "staging")
    await staging.put("fixed", global_delay_ms=250)
    await staging.put("random", global_delay_ms=100, global_delay_max_ms=900)
    await staging.put("none")
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    async with staging.view() as view:
        app = application(view, delay=True, rng=random.Random(7))
        async with client_of(app) as client:
            monkeypatch.setattr("sessionstore.contrib.asgi.asyncio.sleep", note)
            for key in ("fixed", "random", "random", "none", "unknown"):
                await client.get("/", headers={"x-flowmock-session": key})
            monkeypatch.undo()

            # Then each waits for its session's delay, and the same seed gives the same delays
            rng = random.Random(7)
            assert slept == [0.25, rng.randint(100, 900) / 1000, rng.randint(100, 900) / 1000]

        async with client_of(application(view)) as client:
            slept.clear()
            monkeypatch.setattr("sessionstore.contrib.asgi.asyncio.sleep", note)
            await client.get("/", headers={"x-flowmock-session": "fixed"})
            monkeypatch.undo()
            assert slept == []


async def test_a_request_touches_its_session(store: AsyncSessionStore) -> None:
    staging = store.environment("checkout", "staging")
    before = await staging.put("ci-42")
    async with staging.view(touch_interval_s=60) as view, client_of(application(view)) as client:
        await client.get("/", headers={"x-flowmock-session": "ci-42"})

    after = await staging.get("ci-42")
    assert after is not None
    assert after.last_seen_at >= before.last_seen_at
    assert view.get is not None
    with pytest.raises(StoreClosedError):
        view.get("ci-42")


async def test_requests_do_not_share_their_state(store: AsyncSessionStore) -> None:
    # Given a server whose requests share one state, as lifespan state is shared
    staging = store.environment("checkout", "staging")
    await staging.put("ci-42")
    shared = {"from_lifespan": 1}
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"])

    async with staging.view() as view:
        middleware = SessionMiddleware(app, view)
        for key in (b"ci-42", b"ci-43"):
            scope = {"type": "http", "headers": [(b"x-flowmock-session", key)], "state": shared}
            await middleware(scope, None, None)  # type: ignore[arg-type]

    assert shared == {"from_lifespan": 1}
    assert [(state["from_lifespan"], state["mock_session"] is not None) for state in seen] == [(1, True), (1, False)]


async def test_passes_the_lifespan_on_unchanged(store: AsyncSessionStore) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    async with store.environment("checkout", "staging").view() as view:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        await SessionMiddleware(app, view)(scope, None, None)  # type: ignore[arg-type]

    assert scopes[0] is scope
    assert scope["state"] == {}


async def test_serves_websockets_from_a_view_for_threads(embedded_server: EmbeddedServer) -> None:
    with SessionStore.embedded(embedded_server) as store:
        staging = store.environment("checkout", "staging")
        staging.put("ci-42")
        # A view that threads update works on an event loop too.
        with staging.view() as view:
            app = application(view)
            async with client_of(app) as client:
                answer = await client.get("/", headers={"x-flowmock-session": "ci-42"})
                assert answer.json()["key"] == "ci-42"
            assert await greeting(app, [(b"x-flowmock-session", b"ci-42")]) == {"key": "ci-42"}
            assert await greeting(app, []) == {"key": None}


async def greeting(app: Starlette, headers: list[tuple[bytes, bytes]]) -> Any:
    """Connect to the websocket; return its first JSON message."""
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "root_path": "", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return json.loads(next(message["text"] for message in sent if message["type"] == "websocket.send"))
