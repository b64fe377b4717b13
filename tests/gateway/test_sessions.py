"""Calls on a session, its overrides and the list, by each sentence of the contract."""

from __future__ import annotations

import re
import time
from datetime import datetime
from urllib.parse import unquote

import httpx
import pytest

from ..support.gateway import API, PLACE, assert_error

FIELDS = [
    "project",
    "environment",
    "sessionKey",
    "label",
    "scenario",
    "overrides",
    "globalDelayMs",
    "globalDelayMaxMs",
    "lastSeenAt",
]
#: What a session has in a list besides.
MORE_FIELDS = ["revision", "createdAt", "expiresAt", "modifiedAt", "modifiedBy", "lookedUpAt"]
FULL = {
    "label": "CI run 4821",
    "scenario": "scn_paymentDeclined",
    "overrides": ["ovr_extraMock"],
    "globalDelayMs": 5,
    "globalDelayMaxMs": 10,
}
CLEARED: dict[str, object] = {
    "label": None,
    "scenario": None,
    "overrides": [],
    "globalDelayMs": 0,
    "globalDelayMaxMs": 0,
}


def state(document: dict[str, object]) -> dict[str, object]:
    return {name: document[name] for name in FULL}


class TestGet:
    async def test_answers_exactly_these_fields_in_this_order(self, api: API) -> None:
        await api.put("ci-42", FULL)

        response = await api.get("ci-42")

        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        document = response.json()
        assert list(document) == FIELDS
        assert state(document) == FULL
        assert (document["project"], document["environment"], document["sessionKey"]) == (
            "checkout",
            "staging",
            "ci-42",
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["lastSeenAt"])

    async def test_session_that_does_not_exist_is_404(self, api: API) -> None:
        assert_error(await api.get("nobody"), 404, "not_found", "'nobody'", "checkout/staging")

    async def test_does_not_count_as_seen(self, api: API) -> None:
        before = (await api.put("ci-42")).json()["lastSeenAt"]
        start = time.time_ns()
        while time.time_ns() // 1_000_000 == start // 1_000_000:
            pass  # let the clock's millisecond pass

        assert (await api.get("ci-42")).json()["lastSeenAt"] == before

    async def test_head_is_get_without_a_body(self, api: API) -> None:
        await api.put("ci-42", FULL)
        got = await api.get("ci-42")

        head = await api.call("HEAD", "/sessions/ci-42")

        assert head.status_code == 200
        assert head.content == b""
        for name in ("content-length", "content-type", "etag"):
            assert head.headers[name] == got.headers[name]

    async def test_head_of_a_session_that_does_not_exist_is_404(self, api: API) -> None:
        head = await api.call("HEAD", "/sessions/nobody")

        assert (head.status_code, head.content) == (404, b"")


class TestPut:
    async def test_creates_with_nothing_set(self, api: API) -> None:
        response = await api.put("ci-42", {})

        assert response.status_code == 200
        assert list(response.json()) == FIELDS
        assert state(response.json()) == CLEARED

    async def test_answers_200_with_the_shape_of_get_for_create_change_and_repeat(self, api: API) -> None:
        created = await api.put("ci-42", {"label": "one"})
        changed = await api.put("ci-42", FULL)
        repeated = await api.put("ci-42", FULL)

        assert [created.status_code, changed.status_code, repeated.status_code] == [200, 200, 200]
        assert repeated.json() == (await api.get("ci-42")).json()
        assert state(repeated.json()) == FULL

    async def test_omitted_field_is_left_unchanged(self, api: API) -> None:
        await api.put("ci-42", FULL)

        assert state((await api.put("ci-42", {"label": "other"})).json()) == {**FULL, "label": "other"}

    @pytest.mark.parametrize("field", ["label", "scenario", "globalDelayMs", "globalDelayMaxMs"])
    async def test_null_clears_one_field(self, api: API, field: str) -> None:
        await api.put("ci-42", FULL)

        assert state((await api.put("ci-42", {field: None})).json()) == {**FULL, field: CLEARED[field]}

    async def test_overrides_are_the_exact_set_and_remove_other_activations(self, api: API) -> None:
        await api.post("/sessions/ci-42/overrides/ovr_byHand")

        response = await api.put("ci-42", {"overrides": ["ovr_a", "ovr_b"]})

        assert response.json()["overrides"] == ["ovr_a", "ovr_b"]
        assert (await api.put("ci-42", {"overrides": []})).json()["overrides"] == []

    async def test_duplicate_overrides_are_folded_the_first_place_kept(self, api: API) -> None:
        response = await api.put("ci-42", {"overrides": ["ovr_b", "ovr_a", "ovr_b"]})

        assert response.json()["overrides"] == ["ovr_b", "ovr_a"]

    async def test_new_scenario_replaces_the_old_and_overrides_outlive_it(self, api: API) -> None:
        await api.put("ci-42", FULL)

        assert (await api.put("ci-42", {"scenario": "scn_other"})).json()["overrides"] == ["ovr_extraMock"]
        assert state((await api.put("ci-42", {"scenario": None})).json()) == {**FULL, "scenario": None}

    async def test_counts_as_seen_though_nothing_changes(self, api: API) -> None:
        before = (await api.put("ci-42", FULL)).json()["lastSeenAt"]
        start = time.time_ns()
        while time.time_ns() // 1_000_000 == start // 1_000_000:
            pass  # let the clock's millisecond pass

        assert (await api.put("ci-42", FULL)).json()["lastSeenAt"] > before

    async def test_takes_project_and_environment_from_the_body(self, api: API) -> None:
        response = await api.put("ci-42", {**PLACE, "label": "x"}, params={})

        assert response.status_code == 200
        assert (await api.get("ci-42")).json()["label"] == "x"

    async def test_takes_them_from_both_places_if_they_agree(self, api: API) -> None:
        assert (await api.put("ci-42", PLACE)).status_code == 200

    @pytest.mark.parametrize("field", ["project", "environment"])
    async def test_different_ones_in_both_places_are_an_error(self, api: API, field: str) -> None:
        assert_error(await api.put("ci-42", {field: "other"}), 422, "invalid_body", field, "'other'", PLACE[field])
        assert (await api.get("ci-42")).status_code == 404

    async def test_sessions_of_other_environments_and_projects_are_separate(self, api: API) -> None:
        await api.put("ci-42", {"label": "here"})

        for place in ({**PLACE, "environment": "live"}, {**PLACE, "project": "search"}):
            assert (await api.get("ci-42", params=place)).status_code == 404

    async def test_text_keeps_every_character(self, api: API) -> None:
        label = 'Zürich "x" \\ \n\t \u2028 😀 \x00'

        assert (await api.put("ci-42", {"label": label})).json()["label"] == label
        assert (await api.get("ci-42")).json()["label"] == label


class TestReplace:
    async def test_clears_every_omitted_field(self, api: API) -> None:
        before = await api.put("ci-42", FULL)

        response = await api.put("ci-42", {"label": "new"}, params={**PLACE, "mode": "replace"})

        assert state(response.json()) == {**CLEARED, "label": "new"}
        assert response.headers["etag"] != before.headers["etag"]
        repeated = await api.put("ci-42", {"label": "new"}, params={**PLACE, "mode": "replace"})
        assert repeated.headers["etag"] == response.headers["etag"]

    async def test_merge_is_the_default(self, api: API) -> None:
        await api.put("ci-42", FULL)

        response = await api.put("ci-42", {"label": "new"}, params={**PLACE, "mode": "merge"})

        assert state(response.json()) == {**FULL, "label": "new"}

    async def test_preconditions_hold_as_on_any_put(self, api: API) -> None:
        etag = (await api.put("ci-42", FULL)).headers["etag"]
        replace = {**PLACE, "mode": "replace"}

        assert_error(await api.put("ci-42", params=replace, headers={"If-None-Match": "*"}), 412, "precondition_failed")
        assert_error(await api.put("ci-42", params=replace, headers={"If-Match": '"99"'}), 412, "precondition_failed")
        assert state((await api.get("ci-42")).json()) == FULL
        assert state((await api.put("ci-42", params=replace, headers={"If-Match": etag})).json()) == CLEARED

    @pytest.mark.parametrize("mode", ["", "reset", "Replace"])
    async def test_any_other_mode_is_422(self, api: API, mode: str) -> None:
        response = await api.put("ci-42", FULL, params={**PLACE, "mode": mode})

        assert_error(response, 422, "invalid_mode", "merge", "replace")
        assert (await api.get("ci-42")).status_code == 404


def seconds_to_live(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    expires = datetime.fromisoformat(response.headers["session-expires"])
    return (expires - datetime.fromisoformat(response.json()["lastSeenAt"])).total_seconds()


class TestTtl:
    async def test_is_how_long_the_session_lives(self, api: API) -> None:
        assert seconds_to_live(await api.put("ci-42", FULL)) == 86_400

        response = await api.put("ci-42", {"ttlSeconds": 60})

        assert seconds_to_live(response) == 60
        assert list(response.json()) == FIELDS
        assert seconds_to_live(await api.get("ci-42")) == 60
        assert seconds_to_live(await api.put("ci-42", {"label": "x"})) == 60

    async def test_null_replace_and_reset_give_it_back_to_the_server(self, api: API) -> None:
        for method, mode, body in (
            ("PUT", "merge", {"ttlSeconds": None}),
            ("PUT", "replace", FULL),
            ("DELETE", "reset", None),
        ):
            await api.put("ci-42", {"ttlSeconds": 3600})
            await api.call(method, "/sessions/ci-42", params={**PLACE, "mode": mode}, json=body)
            assert seconds_to_live(await api.get("ci-42")) == 86_400

    async def test_a_new_one_is_a_change(self, api: API) -> None:
        etags = [
            (await api.put("ci-42", {"ttlSeconds": seconds})).headers["etag"]
            for seconds in (3600, 3600, 3600.0, 60, 86_400)
        ]

        assert etags == ['"1"', '"1"', '"1"', '"2"', '"3"']


class TestDetails:
    async def test_headers_say_when_and_by_whom_the_state_was_set(self, api: API) -> None:
        put = await api.put("ci-42", {"label": "x"})

        assert put.headers["session-modified"] == put.json()["lastSeenAt"]
        by = put.headers["session-modified-by"]
        assert re.fullmatch(r"bootstrap%20%28[0-9a-f]{12}%29", by)
        for response in (await api.put("ci-42", {"label": "x"}), await api.get("ci-42")):
            assert response.headers["session-modified"] == put.headers["session-modified"]
            assert response.headers["session-modified-by"] == by

    async def test_the_name_of_a_library_s_user_is_percent_encoded(self, api: API) -> None:
        await api.store.environment(**PLACE, actor='Zürich/"nightly" 100%').put("ci-42")

        assert (await api.get("ci-42")).headers["session-modified-by"] == "Z%C3%BCrich%2F%22nightly%22%20100%25"

    async def test_what_is_not_known_has_no_header(self, api: API) -> None:
        await api.store.environment(**PLACE).put("ci-42")

        response = await api.get("ci-42")

        assert response.headers["session-modified"]
        assert not {"session-modified-by", "session-looked-up"} & set(response.headers)

    async def test_a_header_says_when_a_proxy_looked_it_up(self, api: API) -> None:
        seen = (await api.put("ci-42")).json()["lastSeenAt"]
        ms = round(datetime.fromisoformat(seen).timestamp() * 1000)
        await api.store.environment(**PLACE).touch({"ci-42": ms})

        for response in (await api.get("ci-42"), await api.put("ci-42", {"label": "x"})):
            assert response.headers["session-looked-up"] == seen

    async def test_an_unchanged_session_has_them_too(self, api: API) -> None:
        put = await api.put("ci-42")

        response = await api.get("ci-42", headers={"If-None-Match": put.headers["etag"]})

        assert response.status_code == 304
        for name in ("etag", "session-expires", "session-modified", "session-modified-by"):
            assert response.headers[name] == put.headers[name]


class TestEnvironment:
    async def register(self, api: API, *environments: str) -> None:
        await api.store.project("checkout").apply_catalog(
            {"project": "checkout", "environments": {name: {} for name in environments}}
        )

    async def test_only_registered_one_is_chosen_by_itself(self, api: API) -> None:
        await self.register(api, "staging")

        response = await api.put("ci-42", {}, params={"project": "checkout"})

        assert response.json()["environment"] == "staging"
        assert (await api.get("ci-42", params={"project": "checkout"})).status_code == 200
        assert (await api.call("GET", "/sessions", params={"project": "checkout"})).status_code == 200

    async def test_is_required_if_several_are_registered(self, api: API) -> None:
        await self.register(api, "staging", "live")

        response = await api.put("ci-42", {}, params={"project": "checkout"})

        assert_error(response, 422, "environment_required", "live", "staging")

    async def test_is_required_if_none_is_registered(self, api: API) -> None:
        assert_error(await api.get("ci-42", params={"project": "checkout"}), 422, "environment_required")

    async def test_unregistered_one_is_404(self, api: API) -> None:
        await self.register(api, "live")

        assert_error(await api.put("ci-42"), 404, "not_found", "'staging'")
        assert_error(await api.get("ci-42"), 404, "not_found", "'staging'")

    async def test_project_is_required_with_a_key_for_all(self, api: API) -> None:
        for method, path in (
            ("GET", "/sessions"),
            ("GET", "/sessions/a"),
            ("PUT", "/sessions/a"),
            ("DELETE", "/sessions/a"),
            ("POST", "/sessions/a/overrides/ovr_a"),
            ("DELETE", "/sessions/a/overrides/ovr_a"),
        ):
            body: dict[str, object] = {"json": {}} if method == "PUT" else {}
            response = await api.call(method, path, params={"environment": "staging"}, **body)
            assert_error(response, 422, "project_required", "?project=")


class TestDelete:
    async def test_reset_is_the_default_clears_every_field_and_keeps_the_session(self, api: API) -> None:
        await api.put("ci-42", FULL)

        response = await api.delete("ci-42")

        assert response.status_code == 200
        assert response.json() == {"ok": True, "mode": "reset"}
        assert state((await api.get("ci-42")).json()) == CLEARED
        assert (await api.delete("ci-42", "reset")).json() == {"ok": True, "mode": "reset"}

    async def test_delete_removes_the_session(self, api: API) -> None:
        await api.put("ci-42", FULL)

        response = await api.delete("ci-42", "delete")

        assert (response.status_code, response.json()) == (200, {"ok": True, "mode": "delete"})
        assert (await api.get("ci-42")).status_code == 404

    async def test_delete_of_a_session_that_does_not_exist_is_200(self, api: API) -> None:
        response = await api.delete("nobody", "delete")

        assert (response.status_code, response.json()) == (200, {"ok": True, "mode": "delete"})

    async def test_reset_of_a_session_that_does_not_exist_is_404(self, api: API) -> None:
        assert_error(await api.delete("nobody", "reset"), 404, "not_found")
        assert_error(await api.delete("nobody"), 404, "not_found")

    @pytest.mark.parametrize("mode", ["", "purge", "Reset", "delete "])
    async def test_any_other_mode_is_422(self, api: API, mode: str) -> None:
        await api.put("ci-42", FULL)

        assert_error(await api.delete("ci-42", mode), 422, "invalid_mode", "reset", "delete")
        assert state((await api.get("ci-42")).json()) == FULL


class TestPrefix:
    async def fill(self, api: API, *keys: str) -> None:
        for key in keys:
            await api.put(key.replace("%", "%25"), {"label": key})

    async def keys(self, api: API, **params: str) -> set[str]:
        response = await api.call("GET", "/sessions", params={**PLACE, **params})
        assert response.status_code == 200, response.text
        return {session["sessionKey"] for session in response.json()["sessions"]}

    async def change(self, api: API, prefix: str, mode: str, **options: object) -> httpx.Response:
        return await api.call("DELETE", "/sessions", params={**PLACE, "prefix": prefix, "mode": mode}, **options)

    async def test_lists_the_keys_that_begin_so(self, api: API) -> None:
        await self.fill(api, "ci-1", "ci-2", "CI-1", "ci", "ci%", "ci é")

        assert await self.keys(api, prefix="ci-") == {"ci-1", "ci-2"}
        assert await self.keys(api, prefix="ci%") == {"ci%"}
        assert await self.keys(api, prefix="ci é") == {"ci é"}
        assert await self.keys(api, prefix="*") == set()

    async def test_deletes_them(self, api: API) -> None:
        await self.fill(api, "ci-1", "ci-2", "ci", "other")

        response = await self.change(api, "ci-", "delete")

        assert response.status_code == 200, response.text
        assert response.json() == {"ok": True, "mode": "delete", "count": 2, "more": False}
        assert response.headers["session-views"] == "confirmed=0, expired=0"
        assert await self.keys(api) == {"ci", "other"}
        assert (await self.change(api, "ci-", "delete")).json()["count"] == 0

    async def test_resets_them(self, api: API) -> None:
        await self.fill(api, "ci-1", "ci-2", "other")

        response = await self.change(api, "ci-", "reset", headers={"Prefer": "respond-async"})

        assert response.json() == {"ok": True, "mode": "reset", "count": 2, "more": False}
        assert response.headers["preference-applied"] == "respond-async"
        assert (await api.get("ci-1")).json()["label"] is None
        assert (await api.get("other")).json()["label"] == "other"

    @pytest.mark.parametrize("mode", [None, "", "merge", "Delete"])
    async def test_mode_is_required(self, api: API, mode: str | None) -> None:
        await self.fill(api, "ci-1")

        params = {**PLACE, "prefix": "ci-", **({} if mode is None else {"mode": mode})}
        response = await api.call("DELETE", "/sessions", params=params)

        assert_error(response, 422, "invalid_mode", "reset", "delete")
        assert await self.keys(api) == {"ci-1"}

    @pytest.mark.parametrize("beginning", [None, "", " ", " ci-", "ci\n", "x" * 201, "a\x00"])
    async def test_what_no_key_begins_with_is_422(self, api: API, beginning: str | None) -> None:
        await self.fill(api, "ci-1")
        params = {**PLACE, **({} if beginning is None else {"prefix": beginning})}

        response = await api.call("DELETE", "/sessions", params={**params, "mode": "delete"})
        assert_error(response, 422, "invalid_query", "prefix")
        if beginning is not None:
            assert_error(await api.call("GET", "/sessions", params=params), 422, "invalid_query", "prefix")
        assert await self.keys(api) == {"ci-1"}

    @pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
    async def test_preconditions_are_422(self, api: API, name: str) -> None:
        await self.fill(api, "ci-1")

        assert_error(await self.change(api, "ci-", "delete", headers={name: "*"}), 422, "invalid_query", name)
        assert await self.keys(api) == {"ci-1"}

    async def test_too_few_views(self, api: API) -> None:
        await self.fill(api, "ci-1")
        params = {**PLACE, "prefix": "ci-", "mode": "delete", "views": "1"}

        response = await api.call("DELETE", "/sessions", params=params)

        assert_error(response, 503, "too_few_views", "The state is set")
        assert "etag" not in response.headers
        assert await self.keys(api) == set()


class TestOverrides:
    async def test_post_switches_on_and_creates_the_session(self, api: API) -> None:
        for _ in ("first", "again"):
            response = await api.post("/sessions/ci-42/overrides/ovr_extraMock")

            assert response.status_code == 200
            assert response.json() == {"overrideId": "ovr_extraMock", "active": True}
            assert list(response.json()) == ["overrideId", "active"]
            assert (await api.get("ci-42")).json()["overrides"] == ["ovr_extraMock"]

    async def test_delete_switches_off(self, api: API) -> None:
        await api.put("ci-42", {"overrides": ["ovr_a", "ovr_b"]})

        for _ in ("first", "again"):
            response = await api.call("DELETE", "/sessions/ci-42/overrides/ovr_a")

            assert (response.status_code, response.json()) == (200, {"overrideId": "ovr_a", "active": False})
            assert (await api.get("ci-42")).json()["overrides"] == ["ovr_b"]

    async def test_delete_on_a_session_that_does_not_exist_is_404(self, api: API) -> None:
        assert_error(await api.call("DELETE", "/sessions/nobody/overrides/ovr_a"), 404, "not_found")

    @pytest.mark.parametrize(
        "override", ["extraMock", "ovr_", "ovr_a%20b", "ovr_%C3%A4", "%FF", "scn_a", "ovr_" + 125 * "a"]
    )
    async def test_malformed_id_is_422(self, api: API, override: str) -> None:
        for method in ("POST", "DELETE"):
            response = await api.call(method, f"/sessions/ci-42/overrides/{override}")
            assert_error(response, 422, "invalid_override", "ovr_")
        assert (await api.get("ci-42")).status_code == 404

    async def test_201st_override_is_422(self, api: API) -> None:
        full = [f"ovr_{number}" for number in range(200)]
        assert (await api.put("ci-42", {"overrides": full})).status_code == 200

        assert_error(await api.post("/sessions/ci-42/overrides/ovr_more"), 422, "invalid_override", "200")
        assert (await api.get("ci-42")).json()["overrides"] == full

    async def test_catalog_decides_what_may_be_switched_on(self, api: API) -> None:
        await api.store.project("checkout").apply_catalog(
            {
                "project": "checkout",
                "environments": {
                    "staging": {
                        "mocks": [{"id": "ovr_extraMock", "name": "Extra"}],
                        "scenarios": [
                            {
                                "id": "scn_declined",
                                "name": "Declined",
                                "urlId": "declined",
                                "mocks": ["ovr_local"],
                                "localMocks": [{"id": "ovr_local", "name": "Local"}],
                            }
                        ],
                    }
                },
            }
        )

        assert (await api.post("/sessions/ci-42/overrides/ovr_extraMock")).status_code == 200
        for method in ("POST", "DELETE"):
            unknown = await api.call(method, "/sessions/ci-42/overrides/ovr_unknown")
            local = await api.call(method, "/sessions/ci-42/overrides/ovr_local")
            assert_error(unknown, 404, "not_found", "ovr_unknown")
            assert_error(local, 422, "invalid_override", "ovr_local")
        for body, code, word in (
            ({"overrides": ["ovr_extraMock", "ovr_unknown"]}, "invalid_override", "ovr_unknown"),
            ({"overrides": ["ovr_local"]}, "invalid_override", "ovr_local"),
            ({"scenario": "scn_unknown"}, "invalid_scenario", "scn_unknown"),
        ):
            assert_error(await api.put("ci-42", body), 422, code, word)
        assert (await api.get("ci-42")).json()["overrides"] == ["ovr_extraMock"]


class TestList:
    async def keys(self, api: API, **params: str) -> tuple[list[str], str | None]:
        response = await api.call("GET", "/sessions", params={**PLACE, **params})
        assert response.status_code == 200, response.text
        document = response.json()
        assert list(document) == ["sessions", "nextCursor"]
        return [session["sessionKey"] for session in document["sessions"]], document["nextCursor"]

    async def fill(self, api: API, count: int) -> list[str]:
        """Sessions whose order is certain; newest first."""
        names = [f"ci-{number:03d}" for number in range(count)]
        for name in names:
            await api.put(name)
        return sorted(names, reverse=True)  # of the same millisecond, the greater key comes first

    async def test_of_an_environment_without_sessions_is_empty(self, api: API) -> None:
        assert await self.keys(api) == ([], None)

    async def test_has_sessions_as_get_shows_them(self, api: API) -> None:
        await api.put("ci-42", FULL)

        document = (await api.call("GET", "/sessions")).json()

        [listed] = document["sessions"]
        shown = await api.get("ci-42")
        assert {name: listed[name] for name in FIELDS} == shown.json()
        assert list(listed) == [*FIELDS, *MORE_FIELDS]
        assert shown.headers["etag"] == f'"{listed["revision"]}"'
        assert listed["createdAt"] == listed["modifiedAt"] == shown.json()["lastSeenAt"]
        assert listed["expiresAt"] == shown.headers["session-expires"]
        assert listed["modifiedBy"] == unquote(shown.headers["session-modified-by"])
        assert listed["lookedUpAt"] is None

    async def test_newest_seen_first_fifty_to_a_page(self, api: API) -> None:
        names = await self.fill(api, 51)

        first, cursor = await self.keys(api)
        assert first == names[:50]
        assert cursor is not None
        assert await self.keys(api, cursor=cursor) == (names[50:], None)

    async def test_pages_by_cursor(self, api: API) -> None:
        names = await self.fill(api, 5)

        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page, cursor = await self.keys(api, limit="2", **({"cursor": cursor} if cursor else {}))
            found += page
        assert found == names

    @pytest.mark.parametrize("limit", ["1", "100"])
    async def test_limit_at_its_bounds(self, api: API, limit: str) -> None:
        await self.fill(api, 2)

        assert len((await self.keys(api, limit=limit))[0]) == min(2, int(limit))

    @pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "", "ten", "１", "9" * 30])
    async def test_limit_past_its_bounds_is_422(self, api: API, limit: str) -> None:
        response = await api.call("GET", "/sessions", params={**PLACE, "limit": limit})

        assert_error(response, 422, "invalid_query", "limit", "1 to 100")

    @pytest.mark.parametrize("cursor", ["", "x", "%%%", "bnVsbA", "WzEsMl0"])
    async def test_cursor_that_no_list_returned_is_422(self, api: API, cursor: str) -> None:
        response = await api.call("GET", "/sessions", params={**PLACE, "cursor": cursor})

        assert_error(response, 422, "invalid_query", "cursor")

    async def test_head(self, api: API) -> None:
        head = await api.call("HEAD", "/sessions")

        assert (head.status_code, head.content) == (200, b"")
