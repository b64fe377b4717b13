"""Effective on return, over HTTP: when a write is answered, every live view serves it, and headers show the effect."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from sessionstore import AsyncSessionStore, NotEffectiveError, Session, StoreUnavailableError
from sessionstore.aio.connections import Connections
from sessionstore.aio.subscriptions import SubscriptionsDriver
from sessionstore.aio.view import AsyncView
from sessionstore.protocol import operations

from ..support.gateway import API, PLACE, assert_error

CALLS = [
    ("PUT", "/sessions/ci-42", {"label": "x"}),
    ("POST", "/sessions/ci-42/overrides/ovr_a", None),
    ("DELETE", "/sessions/ci-42/overrides/ovr_a", None),
    ("DELETE", "/sessions/ci-42", None),
]


@pytest.fixture(autouse=True)
def patient_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep leases long enough for a slow machine."""
    monkeypatch.setattr(operations, "_PATIENCE_S", 20.0)


@pytest.fixture
async def views(api: API, prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[list[AsyncView]]:
    """Live views of two proxies."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(2):
            if request.node.callspec.params["api"] == "embedded":
                server = request.getfixturevalue("embedded_server")
                store = AsyncSessionStore.embedded(server, prefix=prefix, lease_s=2.0)
            else:
                store = AsyncSessionStore.from_url(request.getfixturevalue("shared_redis").url, prefix=prefix)
            await stack.enter_async_context(store)
            view = store.environment("checkout", "staging").view()
            opened.append(await stack.enter_async_context(view))
        yield opened


def timing(response: httpx.Response) -> dict[str, float]:
    """The phases of ``Server-Timing``, in ms."""
    entries = re.findall(r"([a-z]+);dur=(\d+\.\d\d)(?:, |$)", response.headers["server-timing"])
    assert ", ".join(f"{name};dur={ms}" for name, ms in entries) == response.headers["server-timing"]
    return {name: float(ms) for name, ms in entries}


class TestEveryLiveView:
    async def test_serves_a_write_once_it_is_answered(self, api: API, views: list[AsyncView]) -> None:
        for number in range(30):
            response = await api.put("ci-42", {"label": f"run {number}", "overrides": [f"ovr_{number}"]})

            assert response.status_code == 200
            for view in views:
                session = view.get("ci-42")
                assert session is not None
                assert (session.label, session.overrides) == (f"run {number}", (f"ovr_{number}",))
                assert session.document().last_seen_at == response.json()["lastSeenAt"]

    async def test_serves_every_kind_of_write(self, api: API, views: list[AsyncView]) -> None:
        await api.post("/sessions/ci-42/overrides/ovr_a")
        assert [served(view).overrides for view in views] == [("ovr_a",)] * 2
        await api.call("DELETE", "/sessions/ci-42/overrides/ovr_a")
        assert [served(view).overrides for view in views] == [()] * 2
        await api.put("ci-42", {"label": "x"})
        await api.delete("ci-42", "reset")
        assert [served(view).label for view in views] == [None] * 2
        await api.delete("ci-42", "delete")
        assert [view.get("ci-42") for view in views] == [None] * 2

    async def test_is_counted_in_the_answer(self, api: API, views: list[AsyncView]) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body)

            assert response.status_code == 200, response.text
            assert response.headers["session-views"] == "confirmed=2, expired=0"
            assert list(timing(response)) == ["commit", "effective"]
            assert timing(response)["commit"] > 0
            assert "preference-applied" not in response.headers


def served(view: AsyncView) -> Session:
    session = view.get("ci-42")
    assert session is not None
    return session


class TestWithoutViews:
    async def test_write_without_views_does_not_wait(self, api: API) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body)

            assert response.headers["session-views"] == "confirmed=0, expired=0"
            assert list(timing(response)) == ["commit", "effective"]

    async def test_reads_and_errors_have_no_such_headers(self, api: API) -> None:
        await api.put("ci-42")
        for response in (
            await api.get("ci-42"),
            await api.get("nobody"),
            await api.call("GET", "/sessions"),
            await api.put("ci-42", {"label": 5}),
        ):
            assert not {"session-views", "server-timing", "preference-applied"} & set(response.headers)


class TestTooFewViews:
    async def test_is_503_with_the_etag_and_says_that_the_state_is_set(self, api: API, views: list[AsyncView]) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body, params={**PLACE, "views": "3"})

            sentence = assert_error(response, 503, "too_few_views", "The state is set", "3 live views", "and 2 did")
            assert response.headers["session-views"] == "confirmed=2, expired=0"
            assert "checkout/staging" in sentence
            assert "retry-after" not in response.headers
            assert response.headers["etag"] == (await api.get("ci-42")).headers["etag"]
        response = await api.delete("ci-42", "delete", params={"views": "3"})
        assert_error(response, 503, "too_few_views", "The state is set")
        assert "etag" not in response.headers
        assert (await api.get("ci-42")).status_code == 404

    async def test_enough_are_counted_in_the_answer(self, api: API, views: list[AsyncView]) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body, params={**PLACE, "views": "2"})

            assert response.status_code == 200, response.text
            assert response.headers["session-views"] == "confirmed=2, expired=0"

    async def test_of_another_environment_do_not_count(self, api: API, views: list[AsyncView]) -> None:
        elsewhere = {**PLACE, "environment": "live", "views": "1"}

        assert_error(await api.put("ci-42", params=elsewhere), 503, "too_few_views", "checkout/live", "and 0 did")

    @pytest.mark.parametrize("number", ["", "-1", "1001", "one", "1.0", "١"])
    async def test_what_is_no_number_of_views_is_422(self, api: API, number: str) -> None:
        response = await api.put("ci-42", params={**PLACE, "views": number})

        assert_error(response, 422, "invalid_query", "views", "0 to 1000")

    async def test_with_respond_async_is_422(self, api: API) -> None:
        headers = {"Prefer": "respond-async"}
        response = await api.put("ci-42", params={**PLACE, "views": "1"}, headers=headers)

        assert_error(response, 422, "invalid_query", "views")
        assert (await api.get("ci-42")).status_code == 404
        assert (await api.put("ci-42", params={**PLACE, "views": "0"}, headers=headers)).status_code == 200


class TestRespondAsync:
    async def test_answers_at_commit_and_says_so(self, api: API) -> None:
        for method, path, body in CALLS:
            response = await api.call(method, path, json=body, headers={"Prefer": "respond-async"})

            assert response.status_code == 200, response.text
            assert response.headers["preference-applied"] == "respond-async"
            assert list(timing(response)) == ["commit"]
            assert "session-views" not in response.headers

    async def test_asks_the_store_not_to_wait(
        self, api: API, views: list[AsyncView], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given views, and a wait that never ends
        async def never(self: object, step: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(SubscriptionsDriver, "await_applied", never)

        async with asyncio.timeout(20):
            response = await api.put("ci-42", headers={"Prefer": "respond-async"})

        assert response.status_code == 200

    @pytest.mark.parametrize(
        ("lines", "applied"),
        [
            (["respond-async"], True),
            (["Respond-Async"], True),
            (["return=minimal, respond-async"], True),
            (["respond-async, wait=10"], True),
            (["respond-async; foo=bar"], True),
            (["  respond-async\t"], True),
            (["return=minimal", "respond-async"], True),
            (["respond-asynchronously"], False),
            (["respond-async=no"], False),
            (["wait=10"], False),
            (['foo="a, respond-async, b"'], False),
            (['foo="a\\", respond-async"'], False),
            ([""], False),
            ([",,"], False),
        ],
    )
    async def test_is_read_as_a_list_of_preferences(self, api: API, lines: list[str], applied: bool) -> None:
        headers = [("Prefer", line) for line in lines]

        response = await api.put("ci-42", headers=headers)

        assert response.status_code == 200
        assert (response.headers.get("preference-applied") == "respond-async") is applied


class TestNotEffective:
    @pytest.mark.parametrize(("method", "path", "body"), CALLS)
    async def test_is_503_and_says_that_the_write_was_committed(
        self, api: API, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: object
    ) -> None:
        # Given a write whose confirmation is unknown
        await api.put("ci-42", {"overrides": ["ovr_a"] if method == "DELETE" else []})
        real = api.store._runner.run

        async def run(operation: object) -> object:
            await real(operation)  # type: ignore[arg-type]
            raise NotEffectiveError(
                "The write was committed as revision 7, but whether every view serves it is not known.", 7
            )

        monkeypatch.setattr(api.store._runner, "run", run)
        response = await api.call(method, path, json=body)
        monkeypatch.undo()

        assert_error(response, 503, "not_effective", "was committed", "not known")
        assert response.headers["retry-after"]
        assert response.headers["etag"] == '"7"'
        assert (await api.get("ci-42", params=PLACE)).headers["etag"] != '"1"'

    async def test_loss_of_redis_during_the_wait_is_503(
        self, api: API, views: list[AsyncView], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sentence comes from the library."""
        # Given views with leases and silent links, and a Redis that stops after the commit
        monkeypatch.setattr(operations, "_PATIENCE_S", 0.05)
        real = Connections.execute

        async def execute(self: Connections, call: object) -> object:
            if call.script.name == "lease_status":  # type: ignore[attr-defined]
                raise StoreUnavailableError("Redis can't be reached; nothing was changed, try again later.")
            return await real(self, call)  # type: ignore[arg-type]

        async def nothing_heard(self: object, step: object) -> None:
            return None

        monkeypatch.setattr(Connections, "execute", execute)
        monkeypatch.setattr(SubscriptionsDriver, "await_applied", nothing_heard)

        response = await api.put("ci-42", {"label": "committed"})

        sentence = assert_error(response, 503, "not_effective", "was committed as revision 1", "safe")
        assert "nothing was changed" not in sentence
        monkeypatch.undo()
        assert (await api.get("ci-42")).json()["label"] == "committed"
