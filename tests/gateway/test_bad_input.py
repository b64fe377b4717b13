"""Bad input: the contract's error, a sentence that names the field and the bound, and the session unchanged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, MutableMapping

import pytest

from ..support.gateway import API, AUTHORIZATION, PLACE, assert_error

BEFORE = {
    "label": "before",
    "scenario": "scn_before",
    "overrides": ["ovr_before"],
    "globalDelayMs": 1,
    "globalDelayMaxMs": 2,
}


async def refused(api: API, status: int, code: str, *words: str, **options: object) -> str:
    """PUT with these options on an existing session; check the error, and that nothing changed."""
    before = await api.put("ci-42", BEFORE)
    sentence = assert_error(await api.put("ci-42", **options), status, code, *words)
    after = await api.get("ci-42")
    assert after.json() == before.json()
    assert after.headers["etag"] == before.headers["etag"]
    return sentence


async def bare_call(
    api: API, method: str, received: list[dict[str, object]], **headers: str
) -> list[MutableMapping[str, object]]:
    """Call the app as a server does, with these incoming messages; return the messages that it sent."""
    sent: list[MutableMapping[str, object]] = []
    messages = iter(received)

    async def receive() -> MutableMapping[str, object]:
        return next(messages)

    async def send(message: MutableMapping[str, object]) -> None:
        sent.append(message)

    headers = {**AUTHORIZATION, "content-type": "application/json", **headers}
    scope: MutableMapping[str, object] = {
        "type": "http",
        "method": method,
        "path": "/api/v1/sessions/ci-42",
        "raw_path": b"/api/v1/sessions/ci-42",
        "query_string": b"project=checkout&environment=staging",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await api.app(scope, receive, send)
    return sent


DELAY = ("milliseconds", "0", "120000")


class TestFields:
    @pytest.mark.parametrize(
        ("body", "code", "words"),
        [
            ({"label": "x" * 201}, "invalid_body", ("label", "200")),
            ({"label": "😀" * 201}, "invalid_body", ("label", "200")),
            ({"label": 5}, "invalid_body", ("label", "200", "null")),
            ({"label": ["x"]}, "invalid_body", ("label",)),
            ({"label": {}}, "invalid_body", ("label",)),
            ({"label": True}, "invalid_body", ("label",)),
            ({"scenario": 5}, "invalid_body", ("scenario", "scn_")),
            ({"scenario": []}, "invalid_body", ("scenario",)),
            ({"scenario": ""}, "invalid_scenario", ("scn_",)),
            ({"scenario": "scn_"}, "invalid_scenario", ("scn_",)),
            ({"scenario": "ovr_a"}, "invalid_scenario", ("'ovr_a'",)),
            ({"scenario": "scn_a b"}, "invalid_scenario", ("'scn_a b'",)),
            ({"scenario": "scn_" + "a" * 125}, "invalid_scenario", ("scn_",)),
            ({"scenario": "scn_a\n"}, "invalid_scenario", ("scn_",)),
            ({"overrides": None}, "invalid_body", ("overrides", "[]")),
            ({"overrides": "ovr_a"}, "invalid_body", ("overrides",)),
            ({"overrides": {"ovr_a": True}}, "invalid_body", ("overrides",)),
            ({"overrides": [5]}, "invalid_body", ("overrides",)),
            ({"overrides": [None]}, "invalid_body", ("overrides",)),
            ({"overrides": [["ovr_a"]]}, "invalid_body", ("overrides",)),
            ({"overrides": [f"ovr_{n}" for n in range(201)]}, "invalid_body", ("overrides", "200", "201")),
            ({"overrides": ["ovr_a", "b"]}, "invalid_override", ("'b'", "ovr_")),
            ({"overrides": [""]}, "invalid_override", ("ovr_",)),
            ({"overrides": ["ovr_" + "a" * 125]}, "invalid_override", ("ovr_",)),
            ({"overrides": ['ovr_a","x']}, "invalid_override", ("ovr_",)),
            ({"globalDelayMs": -1}, "invalid_body", ("globalDelayMs", *DELAY)),
            ({"globalDelayMs": 120_001}, "invalid_body", ("globalDelayMs", *DELAY)),
            ({"globalDelayMs": 1.5}, "invalid_body", ("globalDelayMs", *DELAY)),
            ({"globalDelayMs": "5"}, "invalid_body", ("globalDelayMs", *DELAY)),
            ({"globalDelayMs": True}, "invalid_body", ("globalDelayMs", *DELAY)),
            ({"globalDelayMs": 10**40}, "invalid_body", ("globalDelayMs", *DELAY)),
            ({"globalDelayMaxMs": -1}, "invalid_body", ("globalDelayMaxMs", *DELAY)),
            ({"globalDelayMaxMs": 120_001}, "invalid_body", ("globalDelayMaxMs", *DELAY)),
            ({"globalDelayMaxMs": []}, "invalid_body", ("globalDelayMaxMs", *DELAY)),
            ({"ttlSeconds": 59}, "invalid_body", ("ttlSeconds", "at least 60")),
            ({"ttlSeconds": 86_401}, "invalid_body", ("ttlSeconds", "at most 86400")),
            ({"ttlSeconds": 10**40}, "invalid_body", ("ttlSeconds",)),
            ({"ttlSeconds": 60.5}, "invalid_body", ("ttlSeconds", "whole number", "null")),
            ({"ttlSeconds": "60"}, "invalid_body", ("ttlSeconds", "whole number", "null")),
            ({"ttlSeconds": True}, "invalid_body", ("ttlSeconds",)),
            ({"project": None}, "invalid_body", ("project", "64")),
            ({"project": 5}, "invalid_body", ("project", "64")),
            ({"project": "p" * 65}, "invalid_body", ("project", "64")),
            ({"project": "a{b}"}, "invalid_body", ("project", "64")),
            ({"environment": ""}, "invalid_body", ("environment", "64")),
            ({"environment": "e" * 65}, "invalid_body", ("environment", "64")),
            ({"environment": "staging\n"}, "invalid_body", ("environment", "64")),
            ({"overides": []}, "invalid_body", ("'overides'", "did you mean 'overrides'")),
            ({"sessionKey": "ci-42"}, "invalid_body", ("'sessionKey'",)),
            ({"global_delay_ms": 5}, "invalid_body", ("'global_delay_ms'", "globalDelayMs")),
            ({"label": "x", "": 1}, "invalid_body", ("''",)),
            ({"label": "x", "ttl\n`": 1}, "invalid_body", ("ttl",)),
            ({"x" * 5000: 1}, "invalid_body", ("xxx…",)),
            # good fields before and after a bad one: the whole PUT applies, or none of it
            ({"label": "after", "globalDelayMs": -1, "overrides": []}, "invalid_body", ("globalDelayMs",)),
            ({"label": "after", "overrides": ["bad"], "scenario": None}, "invalid_override", ("'bad'",)),
        ],
        ids=lambda value: repr(value)[:40],
    )
    async def test_field_past_its_bound_or_of_a_wrong_type_is_422(
        self, api: API, body: dict[str, object], code: str, words: tuple[str, ...]
    ) -> None:
        sentence = await refused(api, 422, code, *words, body=body)
        assert len(sentence) < 400

    @pytest.mark.parametrize(
        "body",
        [
            {"label": ""},
            {"label": "x" * 200},
            {"label": "😀" * 200},
            {"scenario": "scn_a"},
            {"scenario": "scn_" + "a" * 124},
            {"overrides": [f"ovr_{n}" for n in range(200)]},
            {"overrides": ["ovr_" + "a" * 124, "ovr_-_"]},
            {"globalDelayMs": 0},
            {"globalDelayMs": 120_000},
            {"globalDelayMaxMs": 0},
            {"globalDelayMaxMs": 120_000},
        ],
        ids=lambda body: str(body)[:40],
    )
    async def test_field_at_its_bound_is_accepted(self, api: API, body: dict[str, object]) -> None:
        document = (await api.put("ci-42", body)).json()

        assert {name: document[name] for name in body} == body

    @pytest.mark.parametrize("number", ["250.0", "2.5e2", "250"])
    async def test_whole_number_is_accepted_in_any_spelling(self, api: API, number: str) -> None:
        response = await api.put("ci-42", content=b'{"globalDelayMs": %b}' % number.encode())

        assert response.status_code == 200, response.text
        assert response.json()["globalDelayMs"] == 250

    @pytest.mark.parametrize("number", ["250.5", "1e300", "120000.5", "120001.0", "-1.0"])
    async def test_fraction_or_number_out_of_bounds_is_422(self, api: API, number: str) -> None:
        await refused(api, 422, "invalid_body", "globalDelayMs", content=b'{"globalDelayMs": %b}' % number.encode())

    async def test_duplicate_ids_do_not_count(self, api: API) -> None:
        ids = [f"ovr_{n}" for n in range(200)]

        assert (await api.put("ci-42", {"overrides": [*ids, *ids]})).json()["overrides"] == ids

    @pytest.mark.parametrize("slug", ["p" * 64, "A.b_c-1", "0"])
    async def test_slugs_at_their_bound_are_accepted(self, api: API, slug: str) -> None:
        place = {"project": slug, "environment": slug}

        assert (await api.put("ci-42", place, params={})).status_code == 200
        assert (await api.get("ci-42", params=place)).json()["project"] == slug


class TestJSON:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", ("empty", "{}")),
            (b"  \n", ("empty",)),
            (b"{", ("JSON",)),
            (b'{"label": "after"', ("JSON",)),
            (b'{"label": "after"} {}', ("JSON",)),
            (b"{'label': 'after'}", ("JSON",)),
            (b'{"label": after}', ("JSON",)),
            (b'{"label": "after",}', ("JSON",)),
            (b'{"globalDelayMs": NaN}', ("JSON",)),
            (b'{"globalDelayMs": 01}', ("JSON",)),
            (b'{"label": "a\nb"}', ("JSON",)),
            (b'{"label": "\\ud800"}', ("JSON",)),
            (b'{"label": 5, "overrides": [', ("JSON",)),
            (b"\xef\xbb\xbf{}", ("JSON",)),
            (b'{"label": "\xff"}', ("UTF-8",)),
            (b'{"\xff": 1}', ("UTF-8",)),
            ('{"label": "ä"}'.encode("latin-1"), ("UTF-8",)),
            ('{"label": "x"}'.encode("utf-16"), ("JSON",)),
            (b"[" * 50_000, ("nested",)),
            (b'{"label": ' + b"[" * 50_000, ("nested",)),
            (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, ("nested",)),
            (b'{"label": "after", "label": "x"}', ("'label'", "twice")),
            (b'{"label": "after", "\\u006cabel": "x"}', ("'label'", "twice")),
            (b'{"overrides": [], "label": "x", "overrides": ["ovr_a"]}', ("'overrides'", "twice")),
        ],
        ids=lambda value: repr(value)[:40],
    )
    async def test_malformed_one_is_400(self, api: API, content: bytes, words: tuple[str, ...]) -> None:
        await refused(api, 400, "invalid_json", *words, content=content)

    @pytest.mark.parametrize("content", [b"[]", b"null", b"5", b'"label"', b"true", b'[{"label": "after"}]'])
    async def test_other_than_an_object_is_422(self, api: API, content: bytes) -> None:
        await refused(api, 422, "invalid_body", "object", content=content)

    async def test_value_that_looks_like_a_field_is_no_duplicate(self, api: API) -> None:
        response = await api.put("ci-42", content=b'{"label": "label", "scenario": "scn_\\u0061"}')

        assert (response.json()["label"], response.json()["scenario"]) == ("label", "scn_a")


class TestMediaType:
    @pytest.mark.parametrize(
        "media_type",
        [
            "application/x-www-form-urlencoded",
            "text/plain",
            "application/jsonp",
            "application/json; charset=latin-1",
            "multipart/form-data; boundary=x",
            "",
        ],
    )
    async def test_other_than_json_is_415_and_says_what_to_send(self, api: API, media_type: str) -> None:
        headers = {"Content-Type": media_type}

        await refused(
            api,
            415,
            "unsupported_media_type",
            "Content-Type: application/json",
            "curl",
            content=b'{"label":"after"}',
            headers=headers,
        )

    @pytest.mark.parametrize("encoding", ["gzip", "br, identity", "x"])
    async def test_encoded_one_is_415(self, api: API, encoding: str) -> None:
        headers = {"Content-Encoding": encoding}

        await refused(api, 415, "unsupported_media_type", "Content-Encoding", content=b'{"label":"x"}', headers=headers)

    async def test_identity_is_no_encoding(self, api: API) -> None:
        assert (await api.put("ci-42", content=b"{}", headers={"Content-Encoding": "Identity"})).status_code == 200

    async def test_missing_one_is_415(self, api: API) -> None:
        response = await api.client.put("/sessions/ci-42", params=PLACE, content=b"{}")

        assert_error(response, 415, "unsupported_media_type", "Content-Type: application/json")

    @pytest.mark.parametrize(
        "media_type",
        [
            "application/json",
            "Application/JSON",
            'application/json;charset="UTF-8"',
            "application/json ; charset=utf-8",
        ],
    )
    async def test_json_is_accepted_in_every_spelling(self, api: API, media_type: str) -> None:
        assert (await api.put("ci-42", content=b"{}", headers={"Content-Type": media_type})).status_code == 200


class TestSize:
    #: Bytes
    LIMIT = 64 * 1024

    def body(self, size: int) -> bytes:
        """A valid body of `size` bytes: JSON may be padded."""
        body = json.dumps({"label": "after"}).encode()
        return body + b" " * (size - len(body))

    async def test_body_at_the_limit_is_accepted(self, api: API) -> None:
        assert (await api.put("ci-42", content=self.body(self.LIMIT))).status_code == 200

    async def test_past_the_limit_is_413(self, api: API) -> None:
        await refused(api, 413, "body_too_large", "65536", content=self.body(self.LIMIT + 1))

    async def test_past_the_limit_in_chunks_is_413_and_is_not_read_to_its_end(self, api: API) -> None:
        read = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal read
            while read < 100:
                read += 1
                yield b" " * 1024

        await refused(api, 413, "body_too_large", "65536", content=chunks())
        assert read == self.LIMIT // 1024 + 1

    async def test_chunks_within_the_limit_are_accepted(self, api: API) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for byte in b'{"label": "x"}':
                yield bytes([byte])

        assert (await api.put("ci-42", content=chunks())).json()["label"] == "x"

    @pytest.mark.parametrize("length", ["65537", "1" * 30])
    async def test_declared_length_past_the_limit_is_413_before_the_body_is_read(self, api: API, length: str) -> None:
        sent = await bare_call(api, "PUT", [], **{"content-length": length})

        assert sent[0]["status"] == 413

    async def test_past_the_limit_in_one_message_of_no_declared_length_is_413(self, api: API) -> None:
        sent = await bare_call(api, "PUT", [{"type": "http.request", "body": self.body(self.LIMIT + 1)}])

        assert sent[0]["status"] == 413
        assert (await api.get("ci-42")).status_code == 404

    async def test_client_that_disconnects_mid_body_changes_nothing(self, api: API) -> None:
        await api.put("ci-42", BEFORE)

        sent = await bare_call(
            api,
            "PUT",
            [{"type": "http.request", "body": b'{"label": "after"}', "more_body": True}, {"type": "http.disconnect"}],
        )

        assert sent == []
        assert (await api.get("ci-42")).json()["label"] == "before"


class TestQuery:
    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ("projekt=checkout", ("'projekt'", "did you mean 'project'")),
            ("project=checkout&environment=staging&x=1", ("'x'", "project, environment")),
            ("project=checkout&environment=staging&limit=5", ("'limit'",)),
            ("project=checkout&project=checkout&environment=staging", ("twice",)),
            ("project=checkout&project=search&environment=staging", ("twice",)),
            ("project=&environment=staging", ("project", "slug")),
            ("project=checkout&environment=", ("environment", "slug")),
            ("project=checkout&environment=%0A", ("environment", "slug")),
            ("project=check%7Bout%7D&environment=staging", ("project", "slug")),
            ("project=check:out&environment=staging", ("project", "slug")),
            ("project=-a&environment=staging", ("project", "slug")),
            ("project=" + "p" * 65 + "&environment=staging", ("project", "64")),
            ("project=checkout&environment=" + "e" * 65, ("environment", "64")),
            ("project=%FF&environment=staging", ("UTF-8",)),
            ("%FF=1", ("UTF-8",)),
            ("project=checkout%00&environment=staging", ("project",)),
            ("&".join(f"p{n}=1" for n in range(500)), ("'p0'",)),
        ],
    )
    async def test_bad_query_is_422(self, api: API, query: str, words: tuple[str, ...]) -> None:
        await api.put("ci-42", BEFORE)

        got = await api.client.get(f"/sessions/ci-42?{query}")
        put = await api.client.put(f"/sessions/ci-42?{query}", json={"label": "after"})

        assert_error(got, 422, "invalid_query", *words)
        assert_error(put, 422, "invalid_query", *words)
        assert (await api.get("ci-42")).json()["label"] == "before"

    async def test_percent_encoding_is_decoded(self, api: API) -> None:
        await api.put("ci-42")

        assert (await api.client.get("/sessions/ci-42?pr%6Fject=check%6fut&environment=staging&")).status_code == 200


class TestSessionKey:
    @pytest.mark.parametrize(
        ("sent", "key"),
        [
            ("ci-42", "ci-42"),
            ("%63i-42", "ci-42"),
            ("a%2Fb", "a/b"),
            ("%2F", "/"),
            ("a%252Fb", "a%2Fb"),
            ("a%3Fb%23c", "a?b#c"),
            ("a%26b%3Dc%2Bd", "a&b=c+d"),
            ("a+b", "a+b"),
            ("%2E%2E", ".."),
            ("%2E", "."),
            ("a%20b", "a b"),
            ("%20%20a%20b%09", "a b"),
            ("a%0D%0Ab", "ab"),
            ("Z%C3%BCrich%20%F0%9F%98%80", "Zürich 😀"),
            ("a:b%7Bc%7D*", "a:b{c}*"),
            ("%22%5C%27", "\"\\'"),
            ("x" * 200, "x" * 200),
            ("x" * 300, "x" * 200),
            ("overrides", "overrides"),
            ("%E2%80%A8a", "a"),
        ],
    )
    async def test_works_percent_encoded_in_every_route(self, api: API, sent: str, key: str) -> None:
        path = f"/sessions/{sent}"

        assert (await api.put(sent, {"label": "x"})).json()["sessionKey"] == key
        assert (await api.get(sent)).json()["sessionKey"] == key
        assert (await api.call("HEAD", path)).status_code == 200
        assert (await api.post(f"{path}/overrides/ovr_a")).json()["active"] is True
        assert (await api.call("DELETE", f"{path}/overrides/ovr_a")).json()["active"] is False
        listed = (await api.call("GET", "/sessions")).json()["sessions"]
        assert [session["sessionKey"] for session in listed] == [key]
        assert (await api.delete(sent)).json() == {"ok": True, "mode": "reset"}
        assert (await api.delete(sent, "delete")).json() == {"ok": True, "mode": "delete"}
        assert (await api.get(sent)).status_code == 404

    @pytest.mark.parametrize(
        ("sent", "word"),
        [
            ("%20", "empty"),
            ("%0A", "empty"),
            ("%0D%0A%20%E2%80%A9", "empty"),
            ("a%00b", "control"),
            ("%00", "control"),
            ("a%1Bb", "control"),
            ("a%7Fb", "control"),
            ("a%C2%85b", "control"),
            ("%FF", "UTF-8"),
            ("%zz", "%25"),
            ("a%2", "%25"),
            ("a%C3", "UTF-8"),
            ("%ED%A0%80", "UTF-8"),
            ("%C0%AF", "UTF-8"),
        ],
    )
    async def test_invalid_one_is_422_in_every_route(self, api: API, sent: str, word: str) -> None:
        path = f"/sessions/{sent}"
        for response in (
            await api.get(sent),
            await api.put(sent, {"label": "x"}),
            await api.delete(sent),
            await api.delete(sent, "delete"),
            await api.post(f"{path}/overrides/ovr_a"),
            await api.call("DELETE", f"{path}/overrides/ovr_a"),
        ):
            assert_error(response, 422, "invalid_session_key", word)
        assert (await api.call("GET", "/sessions")).json()["sessions"] == []

    async def test_unencoded_slash_is_another_route(self, api: API) -> None:
        assert_error(await api.get("a/b"), 404, "not_found", "%2F")
        assert_error(await api.get(""), 404, "not_found")
        assert_error(await api.get("a/"), 404, "not_found")
