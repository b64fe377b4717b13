"""API keys over HTTP: what each kind of key may do, and that a wrong key learns nothing and costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.routing import Route

import gateway.auth
from gateway.app import Boundary, create_app
from gateway.auth import Authenticator
from gateway.limits import Limit, RateLimiter
from gateway.logs import JSONFormatter
from gateway.metrics import Metrics
from gateway.routes import Endpoint
from sessionstore import AsyncSessionStore, InvalidFieldError
from sessionstore.api_keys.model import KeySnapshot, NewApiKey, generate_secret, hash_secret
from sessionstore.api_keys.ring import REVOCATION_BOUND_S, Refusal
from sessionstore.clock import lease_clock

from ..support.gateway import LEASE_S, assert_error
from ..support.redis_server import RedisServer

KINDS = ("org", "project", "wrong", "revoked", "expired", "none")
REFUSED_KINDS = ("wrong", "revoked", "expired", "none")
PLACES = {"own": "checkout", "other": "search", "none": None}
SECRET_LABEL = "only-search-knows-this"


@dataclass
class Gateway:
    """One of several gateways on one Redis. The test reloads its keys, or asks for a keeper that does."""

    store: AsyncSessionStore
    authenticator: Authenticator
    app: Boundary
    client: httpx.AsyncClient
    #: scripts that were run
    calls: list[str]
    refusals: list[Refusal]

    async def request(self, method: str, path: str, secret: str | None, **options: Any) -> httpx.Response:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return await self.client.request(method, path, headers=headers | options.pop("headers", {}), **options)

    async def get(self, secret: str | None, project: str = "checkout") -> httpx.Response:
        place = {"project": project, "environment": "staging"}
        return await self.request("GET", "/api/v1/sessions/ci-42", secret, params=place)


@contextlib.asynccontextmanager
async def open_gateway(
    server: RedisServer,
    prefix: str,
    *,
    bootstrap: str | None = None,
    limit: Limit | None = None,
    grace_s: float = REVOCATION_BOUND_S,
    keys_on: RedisServer | None = None,
    **options: Any,
) -> AsyncIterator[Gateway]:
    """A gateway. Its keys are on its own Redis, or on another one if named."""
    calls: list[str] = []
    refusals: list[Refusal] = []

    def observe(script: str, seconds: float, error: object) -> None:
        calls.append(script)

    options |= {"prefix": prefix, "lease_s": LEASE_S, "observe": observe}
    store = AsyncSessionStore.from_url(server.url, **options)
    key_store = AsyncSessionStore.from_url((keys_on or server).url, **options)
    authenticator = Authenticator(bootstrap, key_store, on_refusal=refusals.append, grace_s=grace_s)
    limiter = None if limit is None else RateLimiter(store, limit)
    app = create_app(store, authenticator, limiter=limiter, metrics=Metrics())
    transport = httpx.ASGITransport(app=app)
    async with store, key_store, httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Gateway(store, authenticator, app, client, calls, refusals)


@dataclass
class Keys:
    """A key of each kind, by its kind."""

    secrets: dict[str, str | None]
    ids: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, kind: str) -> str | None:
        return self.secrets[kind]


async def make_expired_key(store: AsyncSessionStore) -> NewApiKey:
    # As short as possible, and long enough for a slow machine to use the key before it expires.
    lifetime_ms = 5
    while True:
        expires_at = (await store.api_keys.snapshot()).now + lifetime_ms
        try:
            expired = await store.api_keys.create("expired", expires_at=expires_at)
            break
        except InvalidFieldError:
            lifetime_ms *= 4
    while (await store.api_keys.snapshot()).now <= expires_at:
        pass
    return expired


async def make_keys(store: AsyncSessionStore) -> Keys:
    org = await store.api_keys.create("org")
    project = await store.api_keys.create("project", project="checkout")
    revoked = await store.api_keys.create("revoked")
    await store.api_keys.revoke(revoked.key.id)
    expired = await make_expired_key(store)
    made = {"org": org, "project": project, "revoked": revoked, "expired": expired}
    return Keys(
        {**{kind: key.secret for kind, key in made.items()}, "wrong": generate_secret(), "none": None},
        {kind: key.key.id for kind, key in made.items()},
    )


@pytest.fixture
async def first(shared_redis: RedisServer, prefix: str) -> AsyncIterator[Gateway]:
    async with open_gateway(shared_redis, prefix) as gateway:
        yield gateway


@pytest.fixture
async def keys(first: Gateway) -> Keys:
    """Keys that the gateway has loaded, and a session of the same name in both projects."""
    for project, label in (("checkout", "mine"), ("search", SECRET_LABEL)):
        await first.store.environment(project, "staging").put("ci-42", label=label, overrides=["ovr_a"])
    keys = await make_keys(first.store)
    assert await first.authenticator.load()
    return keys


@pytest.fixture(autouse=True)
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a gateway's records from aging while a test makes its calls on a slow machine."""
    monkeypatch.setattr(gateway.auth, "lease_clock", lambda: lease_clock() / 1000)


@pytest.fixture
def quick_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal does not wait for the next load, as if it had come."""

    async def loaded(self: Authenticator) -> bool:
        return self._trouble is None

    monkeypatch.setattr(Authenticator, "_next_load", loaded)


def contents(server: RedisServer, prefix: str, project: str) -> dict[bytes, Any]:
    """All data of a project in Redis."""
    with server.client() as behind:
        found: dict[bytes, Any] = {}
        for key in sorted(behind.scan_iter(f"{prefix}:{{{project}}}:*")):
            found[key] = behind.hgetall(key) if behind.type(key) == b"hash" else behind.dump(key)
        return found


def calls_of(app: Boundary) -> list[tuple[str, str, bool]]:
    """List each method of each route, from the app's own table: method, path, whether it asks for a key."""
    found = []
    for route in app.routes:
        assert isinstance(route, Route)
        assert isinstance(route.endpoint, Endpoint)
        resource = route.endpoint.resource
        methods = {*resource.handlers, *(["HEAD"] if "GET" in resource.handlers else [])}
        path = resource.path.format(sessionKey="ci-42", overrideId="ovr_a")
        found += [(method, path, resource.secured) for method in sorted(methods)]
    return found


def expected(kind: str, place: str, secured: bool) -> tuple[int, str | None]:
    """The status, and the code of an error."""
    if not secured:
        return 200, None
    if kind in REFUSED_KINDS:
        return 401, "unauthorized"
    if kind == "org" and place == "none":
        return 422, "project_required"
    if kind == "project" and place == "other":
        return 403, "scope_mismatch"
    return 200, None


class TestMatrix:
    """{org key, project key, wrong, revoked, expired, none} x {each route and method} x {own project, other, none}."""

    def test_knows_every_route(self, first: Gateway) -> None:
        secured = {(method, path) for method, path, asks in calls_of(first.app) if asks}
        session = "/api/v1/sessions/ci-42"
        assert secured >= {
            ("PUT", session),
            ("GET", session),
            ("HEAD", session),
            ("DELETE", session),
            ("POST", f"{session}/overrides/ovr_a"),
            ("DELETE", f"{session}/overrides/ovr_a"),
            ("GET", "/api/v1/sessions"),
            ("DELETE", "/api/v1/sessions"),
            ("GET", "/api/v1/scenarios"),
            ("GET", "/api/v1/views"),
        }
        # Exactly these ask for no key
        assert {path for _, path, asks in calls_of(first.app) if not asks} == {
            "/",
            "/healthz",
            "/readyz",
            "/metrics",
            "/api/v1/openapi.json",
        }

    @pytest.mark.usefixtures("quick_refusals")
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("place", PLACES)
    async def test_each_call(
        self, shared_redis: RedisServer, prefix: str, first: Gateway, keys: Keys, kind: str, place: str
    ) -> None:
        params = {"environment": "staging"}
        if PLACES[place] is not None:
            params["project"] = str(PLACES[place])
        for method, path, secured in calls_of(first.app):
            body = {"json": {"label": "changed", "overrides": ["ovr_b"]}} if method == "PUT" else {}
            more = {"prefix": "ci-", "mode": "reset"} if (method, path) == ("DELETE", "/api/v1/sessions") else {}
            before = {project: contents(shared_redis, prefix, project) for project in ("checkout", "search")}

            response = await first.request(method, path, keys[kind], params={**params, **more}, **body)

            status, code = expected(kind, place, secured)
            assert response.status_code == status, (method, path, response.text)
            if method == "HEAD":
                assert response.content == b""
            elif code is not None:
                assert_error(response, status, code)
            assert ("www-authenticate" in response.headers) == (status == 401)
            # A refused call changes nothing; an allowed call changes one project
            served = (PLACES[place] or "checkout") if status == 200 and secured else None
            for project, was in before.items():
                if project != served:
                    assert contents(shared_redis, prefix, project) == was, (method, path, project)
            if project_key_must_not_see(kind):
                assert SECRET_LABEL not in response.text


def project_key_must_not_see(kind: str) -> bool:
    return kind != "org"


class TestScope:
    """No request with a project's key reads, lists or changes another project."""

    @pytest.mark.usefixtures("quick_refusals")
    @pytest.mark.parametrize(
        ("method", "target", "content", "statuses"),
        [
            ("GET", "/sessions?project=search&environment=staging", None, {403}),
            ("GET", "/sessions?project=%73earch&environment=staging", None, {403}),
            ("GET", "/sessions?project=search&project=checkout&environment=staging", None, {422}),
            ("GET", "/sessions?project=checkout&project=search&environment=staging", None, {422}),
            ("GET", "/sessions?project=checkout&%70roject=search&environment=staging", None, {422}),
            ("GET", "/sessions?Project=search&environment=staging", None, {422}),
            ("GET", "/sessions?project[]=search&environment=staging", None, {422}),
            ("GET", "/sessions?project=search%00&environment=staging", None, {403}),
            ("GET", "/sessions?project=checkout%7D:staging%7Bsearch&environment=staging", None, {403}),
            ("GET", "/sessions?project=&environment=staging", None, {403}),
            ("GET", "/sessions?environment=staging%3A%7Bsearch%7D", None, {422}),
            ("GET", "/sessions?environment=..%2Fsearch%2Fstaging", None, {422}),
            ("GET", "/scenarios?project=search&environment=staging", None, {403}),
            ("GET", "/views?project=search&environment=staging", None, {403}),
            ("GET", "/sessions/ci-42?project=search&environment=staging", None, {403}),
            ("GET", "/sessions/..%2Fsearch%2Fci-42?environment=staging", None, {404}),
            ("GET", "/sessions/%2E%2E%2F%2E%2E%2Fsearch?environment=staging", None, {404}),
            ("GET", "/sessions/%7Bsearch%7D%3Astaging%3As%3Aci-42?environment=staging", None, {404}),
            ("GET", "/sessions/x%3F%26project%3Dsearch?environment=staging", None, {404}),
            ("GET", "/sessions/ci-42%3Fproject=search?environment=staging", None, {404}),
            ("DELETE", "/sessions/ci-42?project=search&environment=staging&mode=delete", None, {403}),
            ("POST", "/sessions/ci-42/overrides/ovr_x?project=search&environment=staging", None, {403}),
            ("DELETE", "/sessions/ci-42/overrides/ovr_a?project=search&environment=staging", None, {403}),
            ("PUT", "/sessions/ci-42?environment=staging", '{"project":"search","label":"x"}', {403}),
            ("PUT", "/sessions/ci-42?environment=staging", '{"project":"\\u0073earch","label":"x"}', {403}),
            ("PUT", "/sessions/ci-42?environment=staging", '{"project":"checkout","project":"search"}', {400}),
            ("PUT", "/sessions/ci-42?environment=staging", '{"project":"checkout","\\u0070roject":"search"}', {400}),
            ("PUT", "/sessions/ci-42?environment=staging&project=search", '{"project":"checkout"}', {422}),
            ("PUT", "/sessions/ci-42?environment=staging&project=checkout", '{"project":"search"}', {422}),
            ("PUT", "/sessions/ci-42?environment=staging&project=search", '{"project":"search"}', {403}),
            ("PUT", "/sessions/ci-42", '{"project":"search","environment":"staging"}', {403}),
        ],
    )
    async def test_another_project_is_refused_in_every_form(
        self,
        shared_redis: RedisServer,
        prefix: str,
        first: Gateway,
        keys: Keys,
        method: str,
        target: str,
        content: str | None,
        statuses: set[int],
    ) -> None:
        before = contents(shared_redis, prefix, "search")
        body = {} if content is None else {"content": content, "headers": {"Content-Type": "application/json"}}

        response = await first.request(method, "/api/v1" + target, keys["project"], **body)

        assert response.status_code in statuses, response.text
        assert SECRET_LABEL not in response.text
        assert contents(shared_redis, prefix, "search") == before

    async def test_the_project_may_be_omitted(self, first: Gateway, keys: Keys) -> None:
        for query in ("environment=staging", "environment=staging&project=checkout"):
            response = await first.request("GET", f"/api/v1/sessions/ci-42?{query}", keys["project"])
            assert (response.json()["project"], response.json()["label"]) == ("checkout", "mine")

    async def test_another_projects_cursor_stays_in_the_project(self, first: Gateway, keys: Keys) -> None:
        for number in range(3):
            await first.store.environment("search", "staging").put(f"other-{number}", label=SECRET_LABEL)
        place = {"project": "search", "environment": "staging", "limit": "1"}
        listed = await first.request("GET", "/api/v1/sessions", keys["org"], params=place)
        cursor = listed.json()["nextCursor"]
        assert cursor

        params = {"environment": "staging", "cursor": cursor}
        response = await first.request("GET", "/api/v1/sessions", keys["project"], params=params)

        assert response.status_code == 200
        assert {session["project"] for session in response.json()["sessions"]} <= {"checkout"}

    async def test_environments_of_another_project_are_not_named(self, first: Gateway, keys: Keys) -> None:
        await first.store.project("search").apply_catalog(
            {"project": "search", "environments": {"secret-qa": {}, "staging": {}}}
        )

        own = await first.request("GET", "/api/v1/sessions", keys["project"])
        other = await first.request("GET", "/api/v1/sessions?project=search", keys["project"])

        assert_error(own, 422, "environment_required")
        assert_error(other, 403, "scope_mismatch", "'checkout'")
        assert "secret-qa" not in own.text + other.text


class TestRefusals:
    """A wrong key learns nothing and costs nothing."""

    async def wrong_headers(self, keys: Keys) -> dict[str, bytes]:
        assert keys["org"] is not None
        return {
            "malformed": b"Bearer fmk_short",
            "too long": f"Bearer {keys['org']}x".encode(),
            "other scheme": f"Basic {keys['org']}".encode(),
            "two keys": f"Bearer {keys['org']}, Bearer {keys['org']}".encode(),
            "not text": b"Bearer \xff\xfe",
            "unknown": f"Bearer {keys['wrong']}".encode(),
            "nearly right": f"Bearer {keys['org'][:-1]}{'A' if keys['org'][-1] != 'A' else 'B'}".encode(),
            "revoked": f"Bearer {keys['revoked']}".encode(),
            "expired": f"Bearer {keys['expired']}".encode(),
        }

    @pytest.mark.usefixtures("quick_refusals")
    async def test_answers_are_identical(self, first: Gateway, keys: Keys) -> None:
        answers = []
        for value in (await self.wrong_headers(keys)).values():
            response = await first.client.get(
                "/api/v1/sessions/ci-42", headers={b"Authorization": value, b"X-Request-Id": b"same"}
            )
            answers.append((response.status_code, sorted(response.headers.items()), response.content))

        assert len(answers) == 9
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] == 401

    @pytest.mark.usefixtures("quick_refusals")
    async def test_only_metrics_show_the_reason(self, first: Gateway, keys: Keys) -> None:
        for value in (
            None,
            b"Bearer x",
            *[f"Bearer {keys[kind]}".encode() for kind in ("wrong", "revoked", "expired")],
        ):
            headers = {} if value is None else {b"Authorization": value}
            assert (await first.client.get("/api/v1/sessions", headers=headers)).status_code == 401

        assert first.refusals == [
            Refusal.MISSING,
            Refusal.MALFORMED,
            Refusal.UNKNOWN,
            Refusal.REVOKED,
            Refusal.EXPIRED,
        ]

    async def test_only_unknown_keys_wait_for_the_next_load(
        self, first: Gateway, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a gateway whose next load comes when the test makes it
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 60.0)
        headers = await self.wrong_headers(keys)
        unknown = [asyncio.create_task(self.send(first, headers.pop(name))) for name in ("unknown", "nearly right")]

        # Then every other refusal is immediate
        async with asyncio.timeout(20):
            while first.authenticator._waiting < len(unknown):  # noqa: ASYNC110  nothing tells it
                await asyncio.sleep(0)
            for value in headers.values():
                assert (await self.send(first, value)).status_code == 401
        assert not any(task.done() for task in unknown)

        # And the unknown keys are refused after the load
        assert await first.authenticator.load()
        assert {response.status_code for response in await asyncio.gather(*unknown)} == {401}

    async def send(self, gateway: Gateway, authorization: bytes) -> httpx.Response:
        return await gateway.client.get("/api/v1/sessions", headers={b"Authorization": authorization})

    async def test_a_hundred_wait_at_a_time_and_a_valid_key_does_not(
        self, first: Gateway, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a thousand guesses, and no load
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 60.0)
        guesses = [asyncio.create_task(first.get(generate_secret())) for _ in range(1000)]

        # Then a hundred of them wait, the others are refused, and a valid key is served meanwhile
        async with asyncio.timeout(20):
            for guess in guesses[gateway.auth.MAX_WAITING :]:
                assert (await guess).status_code == 401
        assert (await first.get(keys["org"])).status_code == 200
        assert not any(guess.done() for guess in guesses[: gateway.auth.MAX_WAITING])

        # And after the load all are refused, and as many may wait again
        assert await first.authenticator.load()
        assert {response.status_code for response in await asyncio.gather(*guesses)} == {401}
        again = asyncio.create_task(first.get(generate_secret()))
        await asyncio.wait([again], timeout=0.05)
        assert not again.done()
        assert await first.authenticator.load()
        assert (await again).status_code == 401

    @pytest.mark.usefixtures("quick_refusals")
    async def test_cause_no_call_of_redis(self, shared_redis: RedisServer, prefix: str) -> None:
        async with open_gateway(shared_redis, prefix, limit=Limit(1000, 60)) as gateway:
            keys = await make_keys(gateway.store)
            await gateway.authenticator.load()
            gateway.calls.clear()
            for value in (await self.wrong_headers(keys)).values():
                for method, path, secured in calls_of(gateway.app):
                    if secured:
                        assert (
                            await gateway.client.request(method, path, headers={b"Authorization": value})
                        ).status_code == 401
            assert gateway.calls == []
            assert (await gateway.get(keys["org"])).status_code == 404
            assert gateway.calls == ["key_count", "get"]

    @pytest.mark.usefixtures("quick_refusals")
    async def test_no_key_is_ever_logged(self, first: Gateway, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        for value in (await self.wrong_headers(keys)).values():
            await first.client.get("/api/v1/sessions", headers={b"Authorization": value})
        assert (await first.get(keys["org"])).status_code == 200

        ours = [record for record in caplog.records if record.name.startswith(("gateway", "sessionstore"))]
        text = "\n".join(JSONFormatter().format(record) for record in ours)
        assert keys.ids["org"] in text
        assert "fmk_" not in text
        for secret in keys.secrets.values():
            assert secret is None or secret.removeprefix("fmk_")[:20] not in text

    async def test_two_authorization_headers_are_no_key(self, first: Gateway, keys: Keys) -> None:
        assert keys["org"] is not None
        assert keys["wrong"] is not None
        for pair in ((keys["org"], keys["wrong"]), (keys["wrong"], keys["org"]), (keys["org"], keys["org"])):
            headers = [("Authorization", f"Bearer {secret}") for secret in pair]
            first.authenticator._loaded_from = float("inf")  # as if loaded later: nothing to wait for
            assert_error(await first.client.get("/api/v1/sessions", headers=headers), 401, "unauthorized")


class TestKeysThatCantBeLoaded:
    """The keys' Redis is down, and that of the sessions is not."""

    @pytest.fixture
    async def split(self, shared_redis: RedisServer, own_redis: RedisServer, prefix: str) -> AsyncIterator[Gateway]:
        """A gateway whose keys are on `own_redis`."""
        async with open_gateway(shared_redis, prefix, grace_s=60.0, keys_on=own_redis, deadline_s=0.5) as gateway:
            yield gateway

    @pytest.fixture
    async def loaded(self, split: Gateway) -> Keys:
        assert split.authenticator._store is not None
        keys = await make_keys(split.authenticator._store)
        assert await split.authenticator.load()
        return keys

    async def test_loaded_ones_work_for_the_grace_and_no_other_key_can_be_judged(
        self, split: Gateway, loaded: Keys, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = lease_clock()
        monkeypatch.setattr(gateway.auth, "lease_clock", lambda: now)
        assert await split.authenticator.load()
        own_redis.stop()
        assert not await split.authenticator.load()
        now += 59.0
        assert not await split.authenticator.load()

        # Then requests with loaded keys are served, and cost no call of the keys' Redis
        split.calls.clear()
        for kind in ("org", "project"):
            assert (await split.get(loaded[kind])).status_code == 404
        assert split.calls == ["get", "get"]
        # And all other keys get the same answer
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 3600.0)
        async with asyncio.timeout(20):
            refused = [await split.get(secret) for secret in (loaded["revoked"], loaded["wrong"], "fmk_x")]
        assert len({assert_error(response, 503, "store_unavailable") for response in refused}) == 1
        assert_error(await split.get(None), 401, "unauthorized")
        assert split.refusals == 3 * [Refusal.UNAVAILABLE] + [Refusal.MISSING]

        # And after the grace, the loaded ones too
        now += 2.0
        assert_error(await split.get(loaded["org"]), 503, "store_unavailable")
        own_redis.start()
        assert await split.authenticator.load()
        assert_error(await split.get(loaded["org"]), 401, "unauthorized")

    async def test_an_unknown_one_is_503_at_once_if_the_last_load_failed(
        self, split: Gateway, loaded: Keys, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given records that are current, when a load has failed
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 3600.0)
        own_redis.stop()
        assert not await split.authenticator.load()

        async with asyncio.timeout(20):
            assert_error(await split.get(loaded["wrong"]), 503, "store_unavailable")

    async def test_an_unknown_one_that_waits_is_503_once_the_load_has_failed(
        self, split: Gateway, loaded: Keys, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 3600.0)
        waiting = [asyncio.create_task(split.get(loaded["wrong"])) for _ in range(3)]
        await asyncio.wait(waiting, timeout=0.05)
        assert not any(task.done() for task in waiting)
        own_redis.pause()
        try:
            assert not await split.authenticator.load()

            async with asyncio.timeout(20):
                for response in await asyncio.gather(*waiting):
                    assert_error(response, 503, "store_unavailable")
            # And a valid key is served meanwhile
            assert (await split.get(loaded["org"])).status_code == 404
        finally:
            own_redis.resume()

    async def test_an_unknown_one_is_503_if_no_load_ends_in_time(
        self, split: Gateway, loaded: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 0.001)

        assert_error(await split.get(loaded["wrong"]), 503, "store_unavailable", "check this key")

    @pytest.mark.parametrize(("grace_s", "words"), [(60.0, "stay valid for 1m"), (1.0, "none is known")])
    async def test_the_log_says_which_work(
        self,
        shared_redis: RedisServer,
        prefix: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        grace_s: float,
        words: str,
    ) -> None:
        now = 100.0
        monkeypatch.setattr(gateway.auth, "lease_clock", lambda: now)
        async with open_gateway(shared_redis, prefix, grace_s=grace_s) as only:
            assert await only.authenticator.load()
            now += 2.0
            await only.authenticator._store.aclose()  # type: ignore[union-attr]
            assert not await only.authenticator.load()

        [record] = caplog.records
        assert words in record.getMessage()


class TestLife:
    """A key from its creation to its revocation, on gateways that share a Redis."""

    @pytest.fixture
    async def second(self, first: Gateway, shared_redis: RedisServer, prefix: str) -> AsyncIterator[Gateway]:
        async with open_gateway(shared_redis, prefix) as gateway:
            yield gateway

    async def test_works_at_once_on_every_gateway(
        self, first: Gateway, second: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gateway.auth, "_SECOND_LOOK_S", 20.0)  # a slow machine must not cause a refusal
        async with first.authenticator.keeping() as loaded, second.authenticator.keeping():
            assert loaded
            for number in range(5):
                key = await first.store.api_keys.create(f"key {number}")
                assert (await second.get(key.secret)).status_code == 404
                assert (await first.get(key.secret)).status_code == 404

    async def test_revoked_one_is_refused_on_every_gateway_and_stays_so(self, first: Gateway, second: Gateway) -> None:
        key = await first.store.api_keys.create("key")
        async with first.authenticator.keeping(), second.authenticator.keeping():
            assert (await second.get(key.secret)).status_code == 404

            await first.store.api_keys.revoke(key.key.id)

            async with asyncio.timeout(20):
                while (response := await second.get(key.secret)).status_code == 404:
                    pass
            assert_error(response, 401, "unauthorized")
            assert {(await second.get(key.secret)).status_code for _ in range(3)} == {401}

    async def test_revoked_one_is_refused_after_the_grace_if_loading_fails(
        self, first: Gateway, shared_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a second gateway that has loaded a key, by a clock that the test moves
        now = 100.0
        monkeypatch.setattr(gateway.auth, "lease_clock", lambda: now)
        key = await first.store.api_keys.create("key")
        async with open_gateway(shared_redis, prefix, grace_s=60.0) as second:
            assert await second.authenticator.load()
            assert second.authenticator.age_s() == 0

            # When it is revoked, and the second gateway loads nothing
            await first.store.api_keys.revoke(key.key.id)
            now += 60.0
            assert second.authenticator.age_s() == 60
            assert (await second.get(key.secret)).status_code == 404
            now += 0.001

            # Then the second gateway refuses it after the grace
            response = await second.get(key.secret)
            assert_error(response, 503, "store_unavailable", "check this key")
            assert response.headers["retry-after"]
            assert second.refusals == [Refusal.UNAVAILABLE]
            assert await second.authenticator.load()
            assert_error(await second.get(key.secret), 401, "unauthorized")

    @pytest.mark.usefixtures("quick_refusals")
    async def test_one_cause_has_one_sentence(self, own_redis: RedisServer, prefix: str) -> None:
        bootstrap = generate_secret()
        async with open_gateway(own_redis, prefix, bootstrap=bootstrap) as only:
            # Given a Redis whose password the gateway lacks
            with own_redis.client() as client:
                client.config_set("requirepass", "secret")
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert not await only.authenticator.load()

            # When it checks a key, serves the bootstrap key, and checks Redis, then each answer says the same
            answers = [
                await only.request("PUT", "/api/v1/sessions/a", generate_secret(), json={}),
                await only.get(bootstrap),
                await only.request("GET", "/readyz", None),
            ]
            sentences = {assert_error(answer, 503, "store_unavailable", "password") for answer in answers}
            assert len(sentences) == 1

    @pytest.mark.usefixtures("quick_refusals")
    async def test_only_the_bootstrap_key_works_while_redis_is_down(
        self, own_redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 100.0
        monkeypatch.setattr(gateway.auth, "lease_clock", lambda: now)
        bootstrap = generate_secret()
        async with open_gateway(own_redis, prefix, bootstrap=bootstrap, deadline_s=0.5) as only:
            keys = await make_keys(only.store)
            await only.authenticator.load()

            # Given Redis down for longer than the bound
            own_redis.stop()
            assert not await only.authenticator.load()
            now += REVOCATION_BOUND_S + 0.001

            # Then keys that may have been revoked are refused, even before the check of a query
            for kind in ("org", "project", "revoked", "expired", "wrong"):
                for method, path, secured in calls_of(only.app):
                    if secured and method != "HEAD":
                        response = await only.request(method, f"{path}?nonsense=1", keys[kind])
                        assert_error(response, 503, "store_unavailable")
            assert_error(await only.request("GET", "/api/v1/sessions", None), 401, "unauthorized")
            # And a malformed key gets the same answer
            assert_error(await only.request("GET", "/api/v1/sessions", "fmk_x"), 503, "store_unavailable")
            assert_error(await only.request("GET", "/api/v1/sessions?nonsense=1", bootstrap), 422, "invalid_query")

            # And when Redis is back and empty, they are unknown
            own_redis.start()
            assert await only.authenticator.load()
            assert_error(await only.get(keys["org"]), 401, "unauthorized")
            assert (await only.get(bootstrap)).status_code == 404

    @pytest.mark.usefixtures("quick_refusals")
    async def test_failed_loading_is_logged_once_and_so_is_its_end(
        self, own_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "gateway")
        async with open_gateway(own_redis, prefix, deadline_s=0.5) as only:
            await only.authenticator.load()
            own_redis.stop()
            for _ in range(3):
                assert not await only.authenticator.load()
            own_redis.start()
            for _ in range(3):
                assert await only.authenticator.load()

        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]

    async def test_loss_of_all_keys_is_logged(
        self, own_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_gateway(own_redis, prefix, deadline_s=5) as only:
            await only.authenticator.load()
            key = await only.store.api_keys.create("ci")
            await only.store.api_keys.revoke(key.key.id)
            await only.authenticator.load()
            with own_redis.client() as behind:
                behind.flushall()
            for _ in range(3):
                await only.authenticator.load()

        [record] = caplog.records
        assert (record.levelname, record.name) == ("ERROR", "gateway")
        assert "lost all API keys" in record.message

    @pytest.mark.usefixtures("quick_refusals")
    async def test_corrupt_record_opens_nothing_and_is_logged_once(
        self, first: Gateway, shared_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given a key whose record is corrupt, and another key
        sound = await first.store.api_keys.create("sound")
        corrupt = await first.store.api_keys.create("corrupt")
        with shared_redis.client() as behind:
            behind.hset(f"{prefix}:keys", hash_secret(corrupt.secret), "nonsense")
        loaded: list[KeySnapshot] = []
        first.authenticator._on_load = loaded.append
        for _ in range(3):
            assert await first.authenticator.load()

        # Then the other key works, and the log names the record once
        assert (await first.get(sound.secret)).status_code == 404
        assert_error(await first.get(corrupt.secret), 401, "unauthorized")
        assert [snapshot.corrupt for snapshot in loaded] == 3 * [(corrupt.key.id,)]
        [record] = [record for record in caplog.records if record.levelname == "ERROR"]
        assert f"sessionstore keys revoke {corrupt.key.id}" in record.getMessage()

        # And what it says helps
        await first.store.api_keys.revoke(corrupt.key.id)
        assert await first.authenticator.load()
        assert loaded[-1].corrupt == ()

    async def test_loading_continues_after_an_unexpected_failure(
        self, first: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads = 0
        went_on = asyncio.Event()
        real = first.authenticator.load

        async def load() -> bool:
            nonlocal loads
            loads += 1
            if loads == 2:
                raise ZeroDivisionError
            if loads == 4:
                went_on.set()
            return await real()

        monkeypatch.setattr(first.authenticator, "load", load)
        monkeypatch.setattr(gateway.auth, "REFRESH_INTERVAL_S", 0.001)
        async with first.authenticator.keeping(), asyncio.timeout(20):
            await went_on.wait()

    async def test_last_use_is_recorded_once_a_minute_by_all_gateways_together(
        self, first: Gateway, second: Gateway
    ) -> None:
        key = await first.store.api_keys.create("key")
        for _ in range(3):
            for one in (first, second):
                await one.authenticator.load()
                assert (await one.get(key.secret)).status_code == 404
                await one.authenticator.load()

        (record,) = await first.store.api_keys.list()
        assert record.last_used_at is not None
        assert record.last_used_at >= record.created_at
        assert (first.calls + second.calls).count("key_used") == 1

    async def test_failed_recording_of_uses_is_not_retried_on_each_load(
        self, own_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_gateway(own_redis, prefix) as only:
            key = await only.store.api_keys.create("key")
            await only.authenticator.load()
            assert (await only.get(key.secret)).status_code == 404
            with own_redis.client() as behind:
                behind.execute_command("CONFIG", "SET", "min-replicas-to-write", "1")
                for _ in range(3):
                    assert await only.authenticator.load()
        assert only.calls.count("key_used") == 1
        assert [record.message for record in caplog.records if "recorded" in record.message] != []

    async def test_only_the_hash_is_in_redis(
        self, shared_redis: RedisServer, prefix: str, first: Gateway, keys: Keys
    ) -> None:
        assert (await first.get(keys["org"])).status_code == 200
        with shared_redis.client(decode_responses=True) as behind:
            (stored,) = [behind.hgetall(name) for name in behind.scan_iter(f"{prefix}:keys")]
        for secret in keys.secrets.values():
            assert secret is None or secret not in str(stored)
