"""The WSGI middleware, called as a server calls it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest

from sessionstore import EmbeddedServer, Environment, SessionStore, StoreClosedError
from sessionstore.contrib import wsgi
from sessionstore.contrib.wsgi import SessionMiddleware
from sessionstore.replica.view import BaseView


def show(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    session = environ["sessionstore.session"]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"key": session and session.session_key}).encode()]


def client_of(view: BaseView, **options: Any) -> httpx.Client:
    """A client of the application; the middleware must keep to the specification towards both sides."""
    app = validator(SessionMiddleware(validator(show), view, **options))
    return httpx.Client(transport=httpx.WSGITransport(app=app), base_url="http://proxy")


@pytest.fixture
def staging(embedded_server: EmbeddedServer) -> Iterator[Environment]:
    with SessionStore.embedded(embedded_server) as store:
        yield store.environment("checkout", "staging")


def test_a_request_has_the_session_in_its_header(staging: Environment) -> None:
    staging.put("ci-42")
    staging.put("grüße")
    with staging.view() as view, client_of(view) as client:
        for raw, key in {
            b"ci-42": "ci-42",
            b" ci-42 ": "ci-42",
            "grüße".encode(): "grüße",
            b"ci-43": None,
            b"": None,
        }.items():
            environ: dict[str, Any] = {"HTTP_X_FLOWMOCK_SESSION": raw.decode("latin-1")}
            setup_testing_defaults(environ)
            [body] = SessionMiddleware(show, view)(environ, lambda *_: lambda _: None)
            assert json.loads(body) == {"key": key}
        assert client.get("/", headers={"x-flowmock-session": "ci-42"}).json() == {"key": "ci-42"}
        assert client.get("/").json() == {"key": None}


def test_the_next_request_sees_a_write_that_has_returned(staging: Environment) -> None:
    header = {"x-flowmock-session": "ci-42"}
    with staging.view() as view, client_of(view) as client:
        for _ in range(50):
            staging.put("ci-42")
            assert client.get("/", headers=header).json() == {"key": "ci-42"}
            staging.delete("ci-42")
            assert client.get("/", headers=header).json() == {"key": None}


def test_takes_another_header(staging: Environment) -> None:
    staging.put("ci-42")
    with staging.view() as view, client_of(view, header="X-Mock-2") as client:
        assert client.get("/", headers={"x-mock-2": "ci-42"}).json() == {"key": "ci-42"}
        assert client.get("/", headers={"x-flowmock-session": "ci-42"}).json() == {"key": None}


def test_applies_the_delay_if_the_option_is_on(staging: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given: sessions with a fixed, a random and no delay.
    staging.put("fixed", global_delay_ms=250)
    staging.put("random", global_delay_ms=100, global_delay_max_ms=900)
    staging.put("none")
    slept: list[float] = []
    with staging.view() as view:

        class Clock:
            sleep = staticmethod(slept.append)

        monkeypatch.setattr(wsgi, "time", Clock)

        # When: requests name them, then each waits as long as the ASGI middleware would.
        with client_of(view, delay=True, rng=random.Random(7)) as client:
            for key in ("fixed", "random", "random", "none", "unknown"):
                client.get("/", headers={"x-flowmock-session": key})
        rng = random.Random(7)
        assert slept == [0.25, rng.randint(100, 900) / 1000, rng.randint(100, 900) / 1000]

        # And: without the option none waits.
        with client_of(view) as client:
            client.get("/", headers={"x-flowmock-session": "fixed"})
        assert len(slept) == 3


def test_a_view_that_is_not_open_is_no_missing_session(staging: Environment) -> None:
    with client_of(staging.view()) as client, pytest.raises(StoreClosedError):
        client.get("/", headers={"x-flowmock-session": "ci-42"})
