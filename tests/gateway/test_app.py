"""Every request needs a key, and gets an id, an error envelope, and a line in the log."""

from __future__ import annotations

import json
import logging
import re

import httpx
import pytest

from gateway.app import create_app
from gateway.auth import Authenticator
from gateway.errors import STATUS
from gateway.logs import JSONFormatter
from sessionstore import AsyncSessionStore, CorruptDataError, EmbeddedServer
from sessionstore.session import hash_session_key

from ..support.gateway import API, AUTHORIZATION, KEY, PLACE, assert_error

SECURED = [
    ("GET", "/sessions"),
    ("DELETE", "/sessions"),
    ("GET", "/sessions/ci-42"),
    ("PUT", "/sessions/ci-42"),
    ("DELETE", "/sessions/ci-42"),
    ("POST", "/sessions/ci-42/overrides/ovr_a"),
    ("DELETE", "/sessions/ci-42/overrides/ovr_a"),
]


class TestKeys:
    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            KEY,
            f"Basic {KEY}",
            f"Bearer{KEY}",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY.upper()}",
            f"Bearer {'fmk_' + 'x' * 43}",
            f"Bearer {KEY}, Bearer {KEY}",
            "Bearer fmk_" + "ä" * 43,
        ],
    )
    async def test_is_refused_alike_whatever_is_wrong_with_it(self, api: API, authorization: str | None) -> None:
        del api.client.headers["authorization"]
        headers = {} if authorization is None else {b"Authorization": authorization.encode()}
        answers = []
        for method, path in SECURED:
            body = {"json": {"label": "x"}} if method == "PUT" else {}
            response = await api.call(method, path, headers=headers, **body)
            answers.append(assert_error(response, 401, "unauthorized", "Authorization: Bearer fmk_"))
            assert response.headers["www-authenticate"].startswith("Bearer")
        # Without the header, there is nothing about a key to give away.
        hint = "The request has no Authorization header; send an API key in it" if authorization is None else ""
        hint = hint or "The API key is malformed, unknown, revoked or expired; send a valid one"
        assert set(answers) == {f"{hint}, as in 'Authorization: Bearer fmk_…'."}
        assert await api.store.environment("checkout", "staging").get("ci-42") is None

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Token", "token", "Bearer  "])
    async def test_scheme_is_bearer_or_token_in_any_case(self, api: API, scheme: str) -> None:
        assert (await api.put("ci-42", headers={"Authorization": f"{scheme} {KEY}"})).status_code == 200

    async def test_is_checked_before_anything_else(self, api: API) -> None:
        response = await api.put("%FF", content=b"{", params={"x": "1"}, headers={"Authorization": "Bearer x"})

        assert_error(response, 401, "unauthorized")


class TestRoutes:
    @pytest.mark.parametrize(
        "path", ["/nope", "/api", "/api/v1", "/api/v1/", "/api/v2/sessions", "/healthz/", "/%2Fhealthz"]
    )
    async def test_unknown_route_is_404(self, api: API, path: str) -> None:
        for method in ("GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"):
            response = await api.client.request(method, f"http://gateway{path}")
            assert_error(response, 404, "not_found", "No route", "/api/v1/openapi.json", "%2F")

    @pytest.mark.parametrize(
        ("path", "allow"),
        [
            ("/api/v1/sessions", "DELETE, GET, HEAD"),
            ("/api/v1/sessions/ci-42", "DELETE, GET, HEAD, PUT"),
            ("/api/v1/sessions/ci-42/overrides/ovr_a", "DELETE, POST"),
            ("/", "GET, HEAD"),
            ("/healthz", "GET, HEAD"),
            ("/readyz", "GET, HEAD"),
        ],
    )
    async def test_other_methods_are_405_with_allow(self, api: API, path: str, allow: str) -> None:
        others = {"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"} - set(allow.split(", "))
        for method in sorted(others):
            response = await api.client.request(method, f"http://gateway{path}")
            if method == "HEAD":
                assert response.status_code == 405
            else:
                assert_error(response, 405, "method_not_allowed", allow)
            assert response.headers["allow"] == allow

    async def test_a_key_that_a_proxy_has_decoded_gets_a_hint(self, api: API) -> None:
        response = await api.get("team/ci-42")
        assert_error(response, 404, "not_found", "%2F", "a proxy in front of the gateway decodes it")

    async def test_the_bare_address_leads_to_the_document(self, api: API) -> None:
        del api.client.headers["authorization"]
        index = (await api.client.get("http://gateway/")).json()
        assert index["api"] == "/api/v1"
        assert (await api.client.get(f"http://gateway{index['document']}")).json()["openapi"].startswith("3.1")

    @pytest.mark.parametrize("path", ["/healthz", "/readyz"])
    async def test_health_needs_no_key(self, api: API, path: str) -> None:
        del api.client.headers["authorization"]

        response = await api.client.get(f"http://gateway{path}")

        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert (await api.client.head(f"http://gateway{path}")).status_code == 200


class TestRequestId:
    @pytest.mark.parametrize("request_id", ["a", "ci-42.7_x", "x" * 128, "0b5c2a6e-6e9b-4f0f-8d3b-6d3f3c1b7f10"])
    async def test_well_formed_id_is_kept(self, api: API, request_id: str) -> None:
        for response in (
            await api.put("ci-42", headers={"X-Request-Id": request_id}),
            await api.get("nobody", headers={"X-Request-Id": request_id}),
            await api.get("a/b", headers={"X-Request-Id": request_id}),
        ):
            assert response.headers["x-request-id"] == request_id

    @pytest.mark.parametrize("request_id", [None, "", "x" * 129, "a b", 'a"b', "ä", "a\tb"])
    async def test_other_ids_are_replaced(self, api: API, request_id: str | None) -> None:
        headers = {} if request_id is None else {b"X-Request-Id": request_id.encode()}

        made = [(await api.get("nobody", headers=headers)).headers["x-request-id"] for _ in range(2)]

        assert all(re.fullmatch("[0-9a-f]{16}", one) for one in made)
        assert made[0] != made[1]

    async def test_an_id_that_is_given_twice_is_replaced(self, api: API) -> None:
        response = await api.get("nobody", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])

        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])


class TestInternalError:
    @pytest.mark.parametrize(
        "error", [RuntimeError("secret detail"), CorruptDataError("secret detail"), ZeroDivisionError()]
    )
    async def test_has_the_request_id_of_the_log_and_no_detail(
        self, api: API, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(project: str, environment: str, *, actor: str) -> None:
            raise error

        monkeypatch.setattr(api.store, "environment", fail)

        response = await api.get("ci-42", headers={"X-Request-Id": "ci-7"})

        assert_error(response, 500, "internal_error", "ci-7")
        assert "secret" not in response.text
        assert "Traceback" not in response.text
        record = next(record for record in caplog.records if record.name == "gateway")
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert record.__dict__["fields"]["requestId"] == "ci-7"

    async def test_foreign_data_in_redis_is_an_internal_error(
        self, api: API, shared_redis: object, prefix: str
    ) -> None:
        await api.redis().set(f"{prefix}:{{checkout}}:staging:s:ci-42", "x")

        assert_error(await api.get("ci-42"), 500, "internal_error")


class TestCorruptSession:
    @pytest.fixture(autouse=True)
    async def given(self, api: API) -> None:
        """Given a session whose record is corrupt, and another one."""
        for key in ("bad", "good"):
            assert (await api.put(key, {"label": "x"})).status_code == 200
        await api.redis().hset(api.store.config.prefix + ":{checkout}:staging:s:bad", "rev", "nan")

    async def test_is_an_internal_error_with_the_remedy_and_deleting_removes_it(
        self, api: API, caplog: pytest.LogCaptureFixture
    ) -> None:
        for response in (
            await api.get("bad"),
            await api.put("bad", {}),
            await api.put("bad", {}, params={**PLACE, "mode": "replace"}),
            await api.delete("bad"),
            await api.post("/sessions/bad/overrides/ovr_a"),
            await api.call("DELETE", "/sessions/bad/overrides/ovr_a"),
            await api.delete("bad", "delete", headers={"If-Match": '"1"'}),
        ):
            assert_error(response, 500, "internal_error", "'bad'", "corrupt", "mode=delete", "without a precondition")
        assert (await api.get("good")).status_code == 200

        assert (await api.delete("bad", "delete")).status_code == 200
        assert (await api.put("bad", {})).status_code == 200

        # The log names it once, by its hash
        [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.getMessage().endswith(f" begins with {hash_session_key('bad')}")
        assert record.exc_info is None

    async def test_is_left_out_of_lists_and_counted(self, api: API) -> None:
        for _ in range(2):
            response = await api.call("GET", "/sessions")
            assert [session["sessionKey"] for session in response.json()["sessions"]] == ["good"]
        assert (await api.get("bad")).status_code == 500

        metrics = await api.client.get("http://gateway/metrics")
        assert "\nsessionstore_corrupt_sessions_total 3.0\n" in metrics.text


class TestAccessLog:
    def lines(self, caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
        return [record.__dict__["fields"] for record in caplog.records if record.name == "gateway.access"]

    async def test_has_one_line_for_each_request(self, api: API, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)

        await api.put("ci-42", {"label": "x"}, headers={"X-Request-Id": "r1"})
        await api.get("secret%20key", headers={"X-Request-Id": "r2"})
        await api.get("ci-42/x", headers={"X-Request-Id": "r3"})
        await api.put("ci-42", headers={"Authorization": "Bearer x", "X-Request-Id": "r4"})

        lines = self.lines(caplog)
        times = [line.pop("ms") for line in lines]
        assert all(isinstance(ms, float) and ms > 0 for ms in times)
        template = "/api/v1/sessions/{sessionKey}"
        key_id = lines[0]["keyId"]
        assert re.fullmatch("[0-9a-f]{12}", str(key_id))
        assert lines == [
            {"requestId": "r1", "keyId": key_id, "method": "PUT", "route": template, "status": 200, "code": None},
            {
                "requestId": "r2",
                "keyId": key_id,
                "method": "GET",
                "route": template,
                "status": 404,
                "code": "not_found",
            },
            {"requestId": "r3", "keyId": None, "method": "GET", "route": "unknown", "status": 404, "code": "not_found"},
            {
                "requestId": "r4",
                "keyId": None,
                "method": "PUT",
                "route": template,
                "status": 401,
                "code": "unauthorized",
            },
        ]

    async def test_never_holds_a_key_or_text_of_the_client(self, api: API, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        wrong = "fmk_" + "w" * 43

        await api.put("secret-name", {"label": "secret-label"})
        await api.get("secret-name", headers={"Authorization": f"Bearer {wrong}"})
        await api.client.get("http://gateway/secret-path")

        text = "\n".join(
            JSONFormatter().format(record) for record in caplog.records if record.name.startswith("gateway")
        )
        assert text
        for secret in (KEY, wrong, "secret"):
            assert secret not in text

    async def test_is_off_by_flag(self, embedded_server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with AsyncSessionStore.embedded(embedded_server) as store:
            transport = httpx.ASGITransport(app=create_app(store, Authenticator(KEY), access_log=False))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                response = await client.put("/api/v1/sessions/a", params=PLACE, headers=AUTHORIZATION, json={})

        assert response.status_code == 200
        assert self.lines(caplog) == []

    def test_line_is_json(self) -> None:
        record = logging.LogRecord("gateway", logging.INFO, "", 0, "a %s", ("b\n",), None)
        record.fields = {"status": 200}

        line = JSONFormatter().format(record)

        assert "\n" not in line
        document = json.loads(line)
        assert (document["message"], document["level"], document["status"]) == ("a b\n", "info", 200)


def test_every_code_of_the_library_has_a_status() -> None:
    import sessionstore.errors as library

    codes = {
        kind.code
        for kind in vars(library).values()
        if isinstance(kind, type) and issubclass(kind, library.SessionStoreError)
    }
    assert codes <= set(STATUS)
