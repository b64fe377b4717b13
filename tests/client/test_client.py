"""Both HTTP clients: on a real gateway, and where a gateway fails."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from msgspec.structs import asdict, replace as replaced

from sessionstore import (
    AccessDeniedError,
    Effect,
    InvalidFieldError,
    InvalidQueryError,
    InvalidScenarioError,
    InvalidSessionKeyError,
    NotDurableError,
    NotFoundError,
    OutcomeUnknownError,
    PreconditionFailedError,
    RateLimitedError,
    Session,
    SessionPatch,
    SessionStore,
    StoreClosedError,
    StoreUnavailableError,
    TooFewViewsError,
)
from sessionstore.client import AsyncSessionClient, SessionClient

from ..support.adapter import Driver
from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import free_port
from .conftest import PLACE, MakeClient

SESSION: dict[str, Any] = {
    **PLACE,
    "sessionKey": "ci-42",
    "label": None,
    "scenario": None,
    "overrides": [],
    "globalDelayMs": 0,
    "globalDelayMaxMs": 0,
    "lastSeenAt": "2026-06-23T12:00:00.000Z",
}


class Answer:
    """What a gateway answers; made anew for each request, since a client consumes it."""

    def __init__(self, status: int, document: object = None, **headers: str) -> None:
        self.status = status
        self.document = document
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def __call__(self) -> httpx.Response:
        if isinstance(self.document, str):
            return httpx.Response(self.status, text=self.document, headers=self.headers)
        return httpx.Response(self.status, json=self.document, headers=self.headers)


def ok(document: object, **headers: str) -> Answer:
    return Answer(200, document, **{"etag": '"7"', "server_timing": "commit;dur=1, effective;dur=1", **headers})


def refused(status: int, code: str, **headers: str) -> Answer:
    return Answer(status, {"error": "A sentence.", "code": code}, **headers)


class Script:
    """Answers one request after the other with what a test lists, and the last for ever; an exception is raised."""

    def __init__(self, *answers: Answer | BaseException) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer()

    @property
    def methods(self) -> list[str]:
        return [request.method for request in self.requests]


def shown(session: Session) -> dict[str, Any]:
    """What a session shows but for the time, which each write moves."""
    return {name: value for name, value in asdict(session.document()).items() if name != "last_seen_at"}


@pytest.fixture
async def client(make_client: MakeClient, gateway: GatewayProcess) -> AsyncIterator[AsyncSessionClient]:
    async with make_client(gateway.url) as client:
        yield client


async def test_a_session_lasts_as_long_as_its_block(client: AsyncSessionClient, store: SessionStore) -> None:
    staging = store.environment("checkout", "staging")
    # Given what an earlier run left
    staging.put("ci-42", label="old", global_delay_ms=5)

    # When a block sets the session
    async with client.session("ci-42", scenario="scn_a", overrides=["ovr_a"]) as session:
        # Then it is exactly that
        assert session.headers == {"x-flowmock-session": "ci-42"}
        held = staging.get("ci-42")
        assert held is not None
        assert (held.label, held.scenario, held.overrides, held.global_delay_ms) == (None, "scn_a", ("ovr_a",), 0)

        # And it can be changed
        await session.on("ovr_b")
        await session.off("ovr_a")
        await session.put(label="new")
        await session.on("ovr_b")
        held = staging.get("ci-42")
        assert held is not None
        assert (held.label, held.scenario, held.overrides) == ("new", "scn_a", ("ovr_b",))
        assert session.state is not None
        assert shown(session.state) == shown(await session.get())
        assert len(session.effects) == 5

    # And at its end it is gone.
    assert staging.get("ci-42") is None


async def test_every_call_of_the_api(client: AsyncSessionClient, store: SessionStore) -> None:
    staging = store.environment("checkout", "staging")
    session = await client.put("every", SessionPatch(label="CI run 4821"), if_none_match="*")
    assert session.effect is not None
    assert session.effect.waited
    held = staging.get("every")
    assert held is not None
    assert held.details is not None
    read = await client.get("every")
    assert (read, read.details) == (replaced(held, created_at=0), held.details)
    assert held.details.modified_by
    with pytest.raises(PreconditionFailedError):
        await client.put("every", label="late", if_match=session.revision + 1)
    session = await client.put("every", global_delay_ms=5, if_match=[session.revision])
    assert session.label == "CI run 4821"
    assert not (await client.activate("every", "ovr_a", wait=False)).waited
    assert (await client.get("every")).overrides == ("ovr_a",)
    assert (await client.deactivate("every", "ovr_a")).waited
    assert (await client.get("every")).overrides == ()
    await client.reset("every", if_match="*")
    assert (await client.get("every")).label is None
    session = await client.put("every", ttl_seconds=60)
    assert session.expires_at - session.last_seen_at == 60_000
    [listed] = (await client.list(1)).sessions
    held = staging.get("every")
    assert held is not None
    assert held.details is not None
    assert (listed, listed.details) == (held, replaced(held.details, ttl_seconds=None))  # the API does not tell the TTL
    await client.delete("every")
    await client.delete("every")
    with pytest.raises(NotFoundError, match="every"):
        await client.get("every")
    assert await client.scenarios(search="none") == await client.scenarios(search="none either")


async def test_the_gateway_s_errors_are_the_library_s(
    client: AsyncSessionClient, make_client: MakeClient, gateway: GatewayProcess
) -> None:
    with pytest.raises(InvalidFieldError, match="globalDelayMs must be between"):
        await client.put("errors", global_delay_ms=-1)
    with pytest.raises(InvalidFieldError, match="a patch or properties"):
        await client.put("errors", SessionPatch(), label="x")
    with pytest.raises(InvalidScenarioError):
        await client.put("errors", scenario="no scenario")
    with pytest.raises(NotFoundError):
        await client.reset("errors")
    async with make_client(gateway.url, api_key="fmk_" + "o" * 43) as stranger:
        with pytest.raises(AccessDeniedError) as caught:
            await stranger.get("errors")
        assert caught.value.code == "unauthorized"
    async with make_client(gateway.url, project=None) as unplaced:
        with pytest.raises(Exception, match="Name the project") as unnamed:
            await unplaced.get("errors")
        assert unnamed.value.code == "project_required"  # type: ignore[attr-defined]


async def test_a_session_can_be_changed_before_its_block_sets_it(
    client: AsyncSessionClient, store: SessionStore
) -> None:
    session = client.session("ci-42", scenario="scn_a")
    await session.on("ovr_a")
    assert session.state is None
    async with session:
        assert session.state is not None
        assert session.state.overrides == ()
        assert (await session.get()).overrides == ()


async def test_a_key_that_no_header_can_carry_alike_is_refused(client: AsyncSessionClient) -> None:
    async with client.session("ключ") as session:
        with pytest.raises(InvalidSessionKeyError, match="ASCII"):
            assert session.headers


async def test_the_session_of_a_failed_block_is_deleted_too(client: AsyncSessionClient, store: SessionStore) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.session("failed"):
            1 / 0  # noqa: B018
    assert store.environment("checkout", "staging").get("failed") is None


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("timed out"),
        httpx.RemoteProtocolError("disconnected"),
        refused(429, "rate_limited"),
        refused(503, "store_unavailable"),
        refused(503, "outcome_unknown"),
        Answer(502, "Bad Gateway"),
    ],
)
async def test_a_call_is_sent_again_until_it_is_answered(
    make_client: MakeClient, failure: Answer | BaseException
) -> None:
    script = Script(failure, failure, ok(SESSION))
    async with make_client(handler=script) as client:
        session = await client.put("ci-42", label=None)
    assert session.revision == 7
    assert script.methods == ["PUT"] * 3
    assert {request.content for request in script.requests} == {b'{"label":null}'}


@pytest.mark.parametrize("failure", [httpx.ReadTimeout("timed out"), refused(503, "not_effective")])
async def test_a_write_with_a_precondition_is_sent_again_only_if_it_changed_nothing(
    make_client: MakeClient, failure: Answer | BaseException
) -> None:
    script = Script(refused(503, "store_unavailable"), failure)
    async with make_client(handler=script) as client:
        with pytest.raises(StoreUnavailableError):
            await client.delete("ci-42", if_match=7)
    assert len(script.requests) == 2


async def test_a_pause_longer_than_the_bound_is_not_waited_for(make_client: MakeClient) -> None:
    script = Script(refused(429, "rate_limited", retry_after="31"))
    async with make_client(handler=script) as client:
        with pytest.raises(RateLimitedError):
            await client.get("ci-42")
    assert len(script.requests) == 1


async def test_a_session_that_may_have_been_set_is_deleted(make_client: MakeClient) -> None:
    cases: list[tuple[Answer | BaseException, list[str]]] = [
        (refused(503, "too_few_views"), ["PUT", "DELETE"]),
        (refused(503, "not_durable"), ["PUT", "DELETE"]),
        (refused(503, "outcome_unknown"), ["PUT", "DELETE"]),
        (refused(422, "invalid_scenario"), ["PUT"]),
        (KeyboardInterrupt(), ["PUT", "DELETE"]),
    ]
    for answer, methods in cases:
        script = Script(answer, ok({}))
        async with make_client(handler=script, retry_for_s=0) as client:
            with pytest.raises(BaseException, match=r"A sentence|^$") as caught:
                async with client.session("ci-42"):
                    pytest.fail("the block is not entered")
        assert script.methods == methods
        assert not getattr(caught.value, "__notes__", [])


async def test_a_session_that_can_not_be_deleted_is_told_by_a_note(make_client: MakeClient) -> None:
    script = Script(ok(SESSION), httpx.ConnectError("refused"))
    async with make_client(handler=script, retry_for_s=0) as client:
        with pytest.raises(ZeroDivisionError) as caught:
            async with client.session("ci-42"):
                1 / 0  # noqa: B018
    [note] = caught.value.__notes__
    assert "session 'ci-42' may remain until it expires" in note
    assert "refused" in note

    # Without another error it is the error.
    async with make_client(handler=Script(ok(SESSION), httpx.ConnectError("refused")), retry_for_s=0) as client:
        with pytest.raises(StoreUnavailableError, match="refused"):
            async with client.session("ci-42"):
                pass


async def test_the_views_that_a_session_demands_are_asked_for_in_each_of_its_writes(make_client: MakeClient) -> None:
    script = Script(ok(SESSION))
    async with make_client(handler=script) as client, client.session("ci-42", views=1) as session:
        await session.put(label=None)
        await session.on("ovr_a")
        await session.off("ovr_a")
    assert [request.url.params.get("views") for request in script.requests] == ["1", "1", "1", "1", None]


async def test_too_few_views_tell_how_many_confirmed(client: AsyncSessionClient, store: SessionStore) -> None:
    with store.environment("checkout", "staging").view():
        with pytest.raises(TooFewViewsError) as caught:
            await client.put("few", label="set", views=2)
        session = await client.get("few")
        assert (caught.value.confirmed, caught.value.revision) == (1, session.revision)
        assert session.label == "set"
        await client.delete("few")


async def test_too_few_views_are_never_asked_again(make_client: MakeClient) -> None:
    script = Script(refused(503, "too_few_views", retry_after="0"))
    async with make_client(handler=script) as client:
        with pytest.raises(TooFewViewsError):
            await client.put("ci-42", views=1)
    assert len(script.requests) == 1


async def test_each_write_may_ask_for_replicas(make_client: MakeClient) -> None:
    timing = {"server_timing": "commit;dur=1.00, durable;dur=2.00, effective;dur=3.00", "session_replicas": "1"}
    script = Script(ok(SESSION, **timing), *[ok({}, **timing)] * 4, *[ok({"count": 1, "more": False}, **timing)] * 2)
    async with make_client(handler=script) as client:
        results: list[Any] = [
            await client.put("ci-42", replicas=1),
            await client.activate("ci-42", "ovr_a", replicas=1),
            await client.deactivate("ci-42", "ovr_a", replicas=1),
            await client.reset("ci-42", replicas=1),
            await client.delete("ci-42", replicas=1),
            await client.delete_prefix("ci-", replicas=1),
            await client.reset_prefix("ci-", replicas=1),
        ]
    assert [request.url.params["replicas"] for request in script.requests] == ["1"] * 7
    effects = [result if isinstance(result, Effect) else result.effect for result in results]
    assert all(effect is not None and (effect.replicas, effect.durable_s) == (1, 0.002) for effect in effects)


async def test_a_write_that_is_not_durable_is_never_sent_again(make_client: MakeClient) -> None:
    script = Script(refused(503, "not_durable", retry_after="0", session_replicas="1"))
    async with make_client(handler=script) as client:
        with pytest.raises(NotDurableError) as caught:
            await client.put("ci-42", replicas=2)
    assert caught.value.replicas == 1
    assert len(script.requests) == 1


async def test_sessions_whose_keys_begin_alike_are_listed_reset_and_deleted(client: AsyncSessionClient) -> None:
    for number in range(3):
        await client.put(f"run-1-{number}", label="one")
    await client.put("run-2-0", label="two")
    assert {item.session_key for item in (await client.list(prefix="run-1-")).sessions} == {
        "run-1-0",
        "run-1-1",
        "run-1-2",
    }
    result = await client.reset_prefix("run-1-")
    assert (result.count, result.more) == (3, False)
    assert result.effect is not None
    assert result.effect.waited
    assert (await client.get("run-1-0")).label is None
    assert (await client.delete_prefix("run-1-", wait=False)).count == 3
    assert (await client.list(prefix="run-1-")).sessions == ()
    assert (await client.get("run-2-0")).label == "two"
    for prefix in ("", "x" * 201):
        with pytest.raises(InvalidQueryError, match="prefix"):
            await client.delete_prefix(prefix)
    await client.delete("run-2-0")


async def test_the_views_of_an_environment_and_where_else_there_are_some(
    make_client: MakeClient, gateway: GatewayProcess, store: SessionStore
) -> None:
    empty: dict[str, Any] = {"mocks": [], "scenarios": []}
    store.project("search").apply_catalog({"project": "search", "environments": {"staging": empty, "uat": empty}})
    uat = store.environment("search", "uat")
    async with make_client(gateway.url, project="search") as client:
        with uat.view():
            uat.put("ci-42")
            live = await client.views()
            assert (live.views, live.elsewhere) == ((), {"uat": 1})
            async with make_client(gateway.url, project="search", environment="uat") as other:
                live = await other.views()
            assert live.elsewhere == {}
            [view] = live.views
            assert (view.pid, view.revision) == (os.getpid(), live.revision)


async def test_a_gateway_that_is_not_there(make_client: MakeClient) -> None:
    async with make_client(f"http://127.0.0.1:{free_port()}", retry_for_s=0) as client:
        with pytest.raises(StoreUnavailableError, match="can't be reached") as caught:
            await client.put("ci-42")
        assert type(caught.value) is StoreUnavailableError
        assert isinstance(caught.value.__cause__, httpx.ConnectError)


@pytest.fixture
def mute_server() -> Iterator[str]:
    """Takes a request and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_a_gateway_that_does_not_answer(make_client: MakeClient, mute_server: str) -> None:
    async with make_client(mute_server, retry_for_s=0) as client:
        with pytest.raises(OutcomeUnknownError, match="applied whole or not at all"):
            await client.put("ci-42")
        with pytest.raises(StoreUnavailableError, match="did not answer") as caught:
            await client.get("ci-42")
        assert type(caught.value) is StoreUnavailableError


async def test_a_closed_client_and_one_of_another_process_are_refused(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(handler=Script(ok(SESSION)))
    await client.get("ci-42")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 0)
        with pytest.raises(StoreClosedError, match="forked"):
            await client.get("ci-42")
    await client.aclose()
    await client.aclose()
    with pytest.raises(StoreClosedError, match="closed"):
        await client.get("ci-42")


async def test_a_cancelled_entry_leaves_no_session() -> None:
    sent, deleted = asyncio.Event(), asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            sent.set()
            await asyncio.sleep(60)
        deleted.set()
        return ok({})()

    async def enter(client: AsyncSessionClient) -> None:
        async with client.session("ci-42"):
            pass

    async with AsyncSessionClient(
        "http://gateway", "fmk_" + "k" * 43, transport=httpx.MockTransport(handler)
    ) as client:
        task = asyncio.create_task(enter(client))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert deleted.is_set()


async def test_a_client_sends_the_key_and_asks_for_json(make_client: MakeClient) -> None:
    script = Script(ok(SESSION))
    async with make_client("https://gateway/mocks/", handler=script) as client:
        await client.get("a/b")
    [request] = script.requests
    assert str(request.url) == "https://gateway/mocks/api/v1/sessions/a%2Fb?project=checkout&environment=staging"
    assert request.headers["authorization"] == "Bearer fmk_" + "k" * 43
    assert request.headers["user-agent"].startswith("sessionstore/")


async def test_certificates_are_loaded_for_tls_only(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    original = ssl.create_default_context

    def load(*args: Any, **options: Any) -> ssl.SSLContext:
        loaded.append(options)
        return original(*args, **options)

    monkeypatch.setattr("ssl.create_default_context", load)
    kind = SessionClient if driver == "sync" else AsyncSessionClient
    kind("http://gateway", KEY)
    assert not loaded
    kind("HTTPS://gateway", KEY)
    assert loaded


async def test_every_operation_of_the_api_has_a_method(make_client: MakeClient, gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient() as http:
        document = (await http.get(f"{gateway.url}/api/v1/openapi.json")).json()
    wanted = {
        (method.upper(), path)
        for path, resource in document["paths"].items()
        for method, operation in resource.items()
        if method in ("get", "put", "post", "delete") and operation.get("security") != []
    }

    pages: dict[str, Any] = {"sessions": [], "nextCursor": None, "scenarios": [], "nextBefore": None}
    others = {"count": 0, "more": False, "revision": 0, "views": [], "elsewhere": {}}
    script = Script(ok(SESSION | pages | others))
    async with make_client(handler=script) as client:
        await client.get("ci-42")
        await client.put("ci-42")
        await client.delete("ci-42")
        await client.activate("ci-42", "ovr_a")
        await client.deactivate("ci-42", "ovr_a")
        await client.list()
        await client.scenarios()
        await client.delete_prefix("ci-")
        await client.views()

    def template(request: httpx.Request) -> str:
        return request.url.path.replace("/ci-42", "/{sessionKey}").replace("/ovr_a", "/{overrideId}")

    assert {(request.method, template(request)) for request in script.requests} >= wanted
    assert len(wanted) >= 7
