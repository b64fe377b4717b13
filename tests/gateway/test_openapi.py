"""The API's document is valid and complete, and all its examples work, those of errors too."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from hypothesis import given, strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.app import create_app
from gateway.auth import Authenticator
from gateway.errors import STATUS
from gateway.limits import Limit, RateLimiter
from gateway.metrics import Metrics
from gateway.openapi import ENTITY_TAGS_PATTERN, KEY_PREFIX_PATTERN, SESSION_KEY_PATTERN
from sessionstore import (
    AsyncSessionStore,
    EmbeddedServer,
    InvalidQueryError,
    InvalidSessionKeyError,
    NotEffectiveError,
    OutcomeUnknownError,
    SessionStoreError,
)
from sessionstore.session import validate_key_prefix, validate_session_key

from ..support.gateway import KEY, LEASE_S, assert_error
from ..support.redis_server import free_port

METHODS = {"get", "put", "post", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document that the gateway serves."""
    import asyncio

    async def read() -> dict[str, Any]:
        with EmbeddedServer() as server:
            async with AsyncSessionStore.embedded(server) as store:
                app = create_app(store, Authenticator(KEY), metrics=Metrics())
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                    response = await client.get("/api/v1/openapi.json")
                    assert response.status_code == 200
                    assert response.headers["content-type"] == "application/json"
                    read: dict[str, Any] = response.json()
                    return read

    return asyncio.run(read())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def resolved(document: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in entry:
        found: Any = document
        for part in entry["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        entry = found
    return entry


class TestDocument:
    def test_is_valid_openapi_3_1(self, document: dict[str, Any]) -> None:
        assert document["openapi"].startswith("3.1.")
        assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []

    def test_has_every_route_and_method(self, document: dict[str, Any]) -> None:
        session = "/api/v1/sessions/{sessionKey}"
        assert {(method.upper(), path) for path, method, _ in operations(document)} == {
            ("GET", session),
            ("PUT", session),
            ("DELETE", session),
            ("POST", f"{session}/overrides/{{overrideId}}"),
            ("DELETE", f"{session}/overrides/{{overrideId}}"),
            ("GET", "/api/v1/sessions"),
            ("DELETE", "/api/v1/sessions"),
            ("GET", "/api/v1/scenarios"),
            ("GET", "/api/v1/views"),
            ("GET", "/api/v1/openapi.json"),
            ("GET", "/"),
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
        }
        assert len({operation["operationId"] for _, _, operation in operations(document)}) == 14

    def test_says_which_calls_need_a_key(self, document: dict[str, Any]) -> None:
        without = {path for path, _, operation in operations(document) if operation.get("security") == []}
        assert without == {"/", "/api/v1/openapi.json", "/healthz", "/readyz", "/metrics"}
        assert document["security"] == [{"apiKey": []}]
        assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"

    def test_shows_exactly_the_fields_of_a_session(self, document: dict[str, Any]) -> None:
        schema = document["components"]["schemas"]["SessionDocument"]
        assert list(schema["properties"]) == schema["required"]
        assert schema["additionalProperties"] is False

    def test_says_that_a_smaller_maximum_of_a_delay_has_no_effect(self, document: dict[str, Any]) -> None:
        body = document["components"]["schemas"]["SessionBody"]
        assert "A smaller one has no effect." in json.dumps(body["properties"]["globalDelayMaxMs"])

    def test_names_each_header_that_matters(self, document: dict[str, Any]) -> None:
        put = document["paths"]["/api/v1/sessions/{sessionKey}"]["put"]
        sent = {resolved(document, entry)["name"] for entry in put["parameters"]}
        in_query = {"project", "environment", "mode", "views", "replicas"}
        assert sent == {"sessionKey", *in_query, "If-Match", "If-None-Match", "Prefer"}
        assert {
            "ETag",
            "X-Request-Id",
            "RateLimit",
            "RateLimit-Policy",
            "Server-Timing",
            "Session-Replicas",
            "Session-Views",
            "Preference-Applied",
            "Session-Expires",
            "Session-Modified",
            "Session-Modified-By",
            "Session-Looked-Up",
        } == set(put["responses"]["200"]["headers"])
        assert "Retry-After" in put["responses"]["429"]["headers"]
        assert "WWW-Authenticate" in put["responses"]["401"]["headers"]

    def test_bounds_a_session_s_ttl_by_the_store_s(self, document: dict[str, Any]) -> None:
        number, null = document["components"]["schemas"]["SessionBody"]["properties"]["ttlSeconds"]["anyOf"]
        assert (number["type"], number["minimum"], number["maximum"]) == ("integer", 60, 86_400)
        assert null == {"type": "null"}

    def test_links_lead_to_calls_by_their_own_parameters(self, document: dict[str, Any]) -> None:
        calls = {operation["operationId"]: operation for _, _, operation in operations(document)}
        followed = 0
        for operation in calls.values():
            for link in operation["responses"]["200"].get("links", {}).values():
                entries = [resolved(document, entry) for entry in calls[link["operationId"]]["parameters"]]
                assert set(link["parameters"]) <= {f"{entry['in']}.{entry['name']}" for entry in entries}
                followed += 1
        assert followed == 25  # from each of five calls on a session to each of them

    @given(st.text(max_size=30))
    def test_pattern_of_a_session_key_matches_the_library(self, key: str) -> None:
        try:
            validate_session_key(key)
        except InvalidSessionKeyError:
            taken = False
        else:
            taken = True
        assert bool(re.search(SESSION_KEY_PATTERN.removesuffix("$") + r"\Z", key)) is taken

    @given(st.text(max_size=5), st.text(st.sampled_from("a \u2028\x85é"), max_size=203))
    def test_pattern_of_a_prefix_matches_the_library(self, first: str, rest: str) -> None:
        for prefix in (first + rest, (first + rest)[:200]):
            try:
                validate_key_prefix(prefix)
            except InvalidQueryError:
                taken = False
            else:
                taken = True
            assert bool(re.search(KEY_PREFIX_PATTERN.removesuffix("$") + r"\Z", prefix)) is taken

    @pytest.mark.parametrize("prefix", ["a" * 200, "a" * 199 + " ", "a" * 198 + " ", "a" * 201, "a ", " a", "a"])
    def test_pattern_of_a_prefix_at_its_bounds(self, prefix: str) -> None:
        taken = prefix.strip() == prefix or len(prefix) < 200
        taken = taken and len(prefix) <= 200 and not prefix.startswith(" ")
        assert bool(re.search(KEY_PREFIX_PATTERN.removesuffix("$") + r"\Z", prefix)) is taken

    @pytest.mark.parametrize(
        ("value", "fits"),
        [("*", True), ('"7"', True), ('W/"7"', True), ('"7", "8"', True), ("7", False), ("", False), ('"7', False)],
    )
    def test_pattern_of_entity_tags(self, value: str, fits: bool) -> None:
        assert bool(re.search(ENTITY_TAGS_PATTERN, value)) is fits


@dataclass
class Call:
    """One request that can be sent."""

    method: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


@dataclass
class World:
    """A gateway, and the means to make it fail in each way."""

    client: httpx.AsyncClient
    store: AsyncSessionStore
    searcher: str

    async def send(self, call: Call) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}", **call.headers}
        path = re.sub(
            r"\{(\w+)\}", lambda match: {"sessionKey": "ci-42", "overrideId": "ovr_extraMock"}[match[1]], call.path
        )
        return await self.client.request(call.method, path, params=call.params, headers=headers, content=call.content)


@pytest.fixture
async def world(embedded_server: EmbeddedServer, prefix: str) -> AsyncIterator[World]:
    async with AsyncSessionStore.embedded(embedded_server, prefix=prefix, lease_s=LEASE_S) as store:
        searcher = (await store.api_keys.create("search", project="search")).secret
        authenticator = Authenticator(KEY, store)
        assert await authenticator.load()
        app = create_app(store, authenticator, metrics=Metrics())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield World(client, store, searcher)


def example_call(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> Call:
    """A call from the document's examples, without the optional preconditions."""
    call = Call(method.upper(), path)
    for entry in operation["parameters"]:
        parameter = resolved(document, entry)
        if "example" in parameter and parameter["in"] == "query":
            call.params[parameter["name"]] = parameter["example"]
        if parameter["in"] == "path":
            call.path = call.path.replace(f"{{{parameter['name']}}}", parameter["example"])
    if "requestBody" in operation:
        ((media_type, content),) = operation["requestBody"]["content"].items()
        call.headers["Content-Type"] = media_type
        call.content = json.dumps(content["example"]).encode()
    return call


SECURED = [
    ("/api/v1/sessions/{sessionKey}", "get"),
    ("/api/v1/sessions/{sessionKey}", "put"),
    ("/api/v1/sessions/{sessionKey}", "delete"),
    ("/api/v1/sessions/{sessionKey}/overrides/{overrideId}", "post"),
    ("/api/v1/sessions/{sessionKey}/overrides/{overrideId}", "delete"),
    ("/api/v1/sessions", "get"),
    ("/api/v1/sessions", "delete"),
    ("/api/v1/scenarios", "get"),
    ("/api/v1/views", "get"),
]
OPEN = [(path, "get") for path in ("/api/v1/openapi.json", "/healthz", "/readyz", "/metrics")]


class TestExamples:
    @pytest.mark.parametrize(("path", "method"), SECURED + OPEN)
    async def test_call_made_of_the_examples_works(
        self, world: World, document: dict[str, Any], path: str, method: str
    ) -> None:
        # Given a session to work on
        await world.store.environment("checkout", "staging").put("ci-42", label="x", overrides=["ovr_extraMock"])
        operation = document["paths"][path][method]

        response = await world.send(example_call(document, path, method, operation))

        assert response.status_code == 200, response.text
        documented = operation["responses"]["200"]
        ((media_type, content),) = documented["content"].items()
        assert response.headers["content-type"].partition(";")[0] == media_type
        if "schema" in content:
            assert set(response.json()) == set(resolved(document, content["schema"])["properties"])
        for name, header in documented["headers"].items():
            assert name in response.headers or not header.get("required", False), name


def json_call(call: Call, body: object) -> Call:
    return replace(call, headers={"Content-Type": "application/json"}, content=json.dumps(body).encode())


def without(call: Call, name: str) -> Call:
    return replace(call, params={other: value for other, value in call.params.items() if other != name})


def with_place(call: Call, **place: str) -> Call:
    return replace(call, params={"project": "checkout", "environment": "staging", **place})


#: For each code, the change of a valid call that provokes it.
SPOILERS: dict[str, Callable[[Call, World], Call]] = {
    "unauthorized": lambda call, world: replace(call, headers={**call.headers, "Authorization": ""}),
    "scope_mismatch": lambda call, world: replace(
        call, headers={**call.headers, "Authorization": f"Bearer {world.searcher}"}
    ),
    "project_required": lambda call, world: without(call, "project"),
    "environment_required": lambda call, world: without(call, "environment"),
    "not_found": lambda call, world: with_place(call, **{**call.params, "environment": "live"}),
    "invalid_query": lambda call, world: replace(call, params={"project": "checkout", "enviroment": "staging"}),
    "invalid_session_key": lambda call, world: replace(call, path=call.path.replace("{sessionKey}", "a%00b")),
    "invalid_override": lambda call, world: (
        json_call(call, {"overrides": ["extraMock"]})
        if call.method == "PUT"
        else replace(call, path=call.path.replace("{overrideId}", "extraMock"))
    ),
    "invalid_scenario": lambda call, world: json_call(call, {"scenario": "declined"}),
    "invalid_mode": lambda call, world: with_place(call, mode="purge"),
    "invalid_json": lambda call, world: replace(call, content=b""),
    "invalid_body": lambda call, world: json_call(call, {"globalDelayMs": -1}),
    "body_too_large": lambda call, world: replace(call, content=b" " * 65_537),
    "unsupported_media_type": lambda call, world: replace(
        call, headers={"Content-Type": "application/x-www-form-urlencoded"}
    ),
    "too_few_views": lambda call, world: with_place(call, **{**call.params, "views": "1"}),
    "not_durable": lambda call, world: with_place(call, **{**call.params, "replicas": "1"}),
    "precondition_failed": lambda call, world: replace(call, headers={**call.headers, "If-Match": '"999"'}),
}
#: Codes that need more than a request: a failure, a limit, or bytes that never reach the app (test_server).
BY_CIRCUMSTANCES = {
    *("rate_limited", "internal_error", "bad_request", "too_many_connections"),
    *("store_unavailable", "outcome_unknown", "not_effective", "quota_exceeded"),
}


def codes_of(operation: dict[str, Any]) -> dict[str, int]:
    """The status of each code that a call documents."""
    return {
        code: int(status)
        for status, response in operation["responses"].items()
        if int(status) >= 400
        for code in response["content"]["application/json"]["schema"]["properties"]["code"]["enum"]
    }


def fine_call(path: str, method: str) -> Call:
    call = Call(method.upper(), path, {"project": "checkout", "environment": "staging"})
    if (path, method) == ("/api/v1/sessions", "delete"):
        return with_place(call, prefix="ci-", mode="delete")
    return json_call(call, {"label": "x"}) if method == "put" else call


class TestErrors:
    """Every code of every call, as documented: provoked over HTTP."""

    def test_every_code_is_documented(self, document: dict[str, Any]) -> None:
        documented = {code for _, _, operation in operations(document) for code in codes_of(operation)}
        assert documented == set(STATUS) - {"method_not_allowed"}

    def test_every_code_can_be_provoked(self, document: dict[str, Any]) -> None:
        assert SPOILERS.keys() | BY_CIRCUMSTANCES == STATUS.keys() - {"method_not_allowed"}

    @pytest.mark.parametrize(("path", "method"), SECURED)
    async def test_each_code_of_a_call_comes_as_documented(
        self, world: World, document: dict[str, Any], path: str, method: str
    ) -> None:
        codes = codes_of(document["paths"][path][method])
        await world.store.environment("checkout", "staging").put("ci-42", label="x")
        assert (await world.send(fine_call(path, method))).status_code == 200

        # `not_found` last: it takes registered environments
        for code in sorted(codes.keys() - BY_CIRCUMSTANCES, key=lambda code: (code == "not_found", code)):
            if code == "not_found":
                await world.store.project("checkout").apply_catalog(
                    {"project": "checkout", "environments": {"staging": {}, "qa": {}}}
                )
            response = await world.send(SPOILERS[code](fine_call(path, method), world))

            assert_error(response, codes[code], code)

        # And no undocumented code is answered
        for code in SPOILERS.keys() - codes.keys():
            response = await world.send(SPOILERS[code](fine_call(path, method), world))
            assert response.status_code == 200 or response.json()["code"] in codes, (code, response.text)

    @pytest.mark.parametrize(("path", "method"), SECURED)
    async def test_a_quota_is_as_shown(
        self, document: dict[str, Any], path: str, method: str, embedded_server: EmbeddedServer, prefix: str
    ) -> None:
        options: Any = {"prefix": prefix, "max_sessions": 1}
        async with AsyncSessionStore.embedded(embedded_server, lease_s=LEASE_S, **options) as store:
            await store.environment("checkout", "staging").put("another")
            transport = httpx.ASGITransport(app=create_app(store, Authenticator(KEY)))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                response = await World(client, store, "").send(fine_call(path, method))

        documented = codes_of(document["paths"][path][method])
        assert ("quota_exceeded" in documented) is (response.status_code == 409)
        if response.status_code == 409:
            assert_error(response, documented["quota_exceeded"], "quota_exceeded")

    @pytest.mark.parametrize(("path", "method"), [*SECURED, ("/readyz", "get")])
    async def test_internal_error_is_as_shown(
        self, world: World, document: dict[str, Any], path: str, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(world.store, "environment", fail)
        monkeypatch.setattr(world.store, "ping", fail)

        response = await world.send(fine_call(path, method))

        assert_error(response, codes_of(document["paths"][path][method])["internal_error"], "internal_error")

    @pytest.mark.parametrize(("path", "method"), [*SECURED, ("/readyz", "get")])
    async def test_store_unavailable_is_as_shown(self, document: dict[str, Any], path: str, method: str) -> None:
        async with AsyncSessionStore.from_url(f"redis://127.0.0.1:{free_port()}/0") as store:
            transport = httpx.ASGITransport(app=create_app(store, Authenticator(KEY)))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                response = await World(client, store, "").send(fine_call(path, method))

        assert_error(response, codes_of(document["paths"][path][method])["store_unavailable"], "store_unavailable")
        assert response.headers["retry-after"]

    @pytest.mark.parametrize(("path", "method"), SECURED)
    @pytest.mark.parametrize("error", [OutcomeUnknownError("It is not known."), NotEffectiveError("It is set.", 7)])
    async def test_a_write_that_may_not_be_in_effect_is_as_shown(
        self,
        world: World,
        document: dict[str, Any],
        path: str,
        method: str,
        error: SessionStoreError,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def fail(operation: object) -> None:
            raise error

        monkeypatch.setattr(world.store._runner, "run", fail)
        response = await world.send(fine_call(path, method))

        documented = codes_of(document["paths"][path][method])
        assert (error.code in documented) is (method != "get")
        if method != "get":
            assert_error(response, documented[error.code], error.code)
            assert response.headers["retry-after"]

    @pytest.mark.parametrize(("path", "method"), SECURED)
    async def test_rate_limited_is_as_shown(
        self, embedded_server: EmbeddedServer, document: dict[str, Any], path: str, method: str
    ) -> None:
        async with AsyncSessionStore.embedded(embedded_server, lease_s=LEASE_S) as store:
            app = create_app(store, Authenticator(KEY), limiter=RateLimiter(store, Limit(1, 60)))
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                world = World(client, store, "")
                await world.send(fine_call(path, method))
                response = await world.send(fine_call(path, method))

        assert_error(response, codes_of(document["paths"][path][method])["rate_limited"], "rate_limited")
