"""ETag, If-Match and If-None-Match."""

from __future__ import annotations

import pytest

from ..support.gateway import API, assert_error


async def etag(api: API) -> str:
    return (await api.get("ci-42")).headers["etag"]


class TestETag:
    async def test_is_the_revision_on_get_and_put(self, api: API) -> None:
        put = await api.put("ci-42", {"label": "a"})

        assert put.headers["etag"] == '"1"'
        assert await etag(api) == '"1"'

    async def test_changes_with_a_change_and_stays_with_a_repeat(self, api: API) -> None:
        first = (await api.put("ci-42", {"label": "a"})).headers["etag"]

        assert (await api.put("ci-42", {"label": "a"})).headers["etag"] == first
        assert (await api.put("ci-42", {"label": "b"})).headers["etag"] != first

    async def test_of_a_session_that_was_made_again_is_another(self, api: API) -> None:
        first = (await api.put("ci-42")).headers["etag"]
        await api.delete("ci-42", "delete")

        assert (await api.put("ci-42")).headers["etag"] != first


class TestIfMatch:
    @pytest.mark.parametrize("value", ['"1"', "*", '"9", "1"', ' "x" ,, "1" ', 'W/"9", "1"'])
    async def test_that_holds(self, api: API, value: str) -> None:
        for mode in ("reset", "delete"):
            await api.delete("ci-42", "delete")
            revision = (await api.put("ci-42", {"label": "a"})).headers["etag"].strip('"')
            headers = {"If-Match": value.replace('"1"', f'"{revision}"')}

            assert (await api.put("ci-42", {"label": "a"}, headers=headers)).status_code == 200
            assert (await api.delete("ci-42", mode, headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "value", ['"9"', 'W/"1"', '"1x"', '"01"', '"x"', '""', '"-1"', '"8", "9"', '"' + "9" * 30 + '"']
    )
    async def test_that_does_not_hold_is_412_and_changes_nothing(self, api: API, value: str) -> None:
        before = await api.put("ci-42", {"label": "a"})
        headers = {"If-Match": value}

        for response in (
            await api.put("ci-42", {"label": "b"}, headers=headers),
            await api.delete("ci-42", "reset", headers=headers),
            await api.delete("ci-42", "delete", headers=headers),
        ):
            assert_error(response, 412, "precondition_failed", "ci-42")
        assert (await api.get("ci-42")).json() == before.json()

    @pytest.mark.parametrize("value", ['"1"', "*"])
    async def test_never_holds_for_a_session_that_does_not_exist(self, api: API, value: str) -> None:
        headers = {"If-Match": value}

        assert_error(await api.put("ci-42", headers=headers), 412, "precondition_failed")
        assert_error(await api.delete("ci-42", "reset", headers=headers), 412, "precondition_failed")
        assert_error(await api.delete("ci-42", "delete", headers=headers), 412, "precondition_failed")
        assert (await api.get("ci-42")).status_code == 404

    @pytest.mark.parametrize("value", ["", "1", "'1'", '"1', '"1" "2"', 'w/"1"', '*, "1"', ",", '"a b"', "W/"])
    async def test_malformed_one_is_422_and_changes_nothing(self, api: API, value: str) -> None:
        await api.put("ci-42", {"label": "a"})

        for response in (
            await api.put("ci-42", {"label": "b"}, headers={"If-Match": value}),
            await api.delete("ci-42", "delete", headers={"If-Match": value}),
        ):
            assert_error(response, 422, "invalid_query", "If-Match")
        assert (await api.get("ci-42")).json()["label"] == "a"

    async def test_lines_are_one_list(self, api: API) -> None:
        await api.put("ci-42", {"label": "a"})
        current = await etag(api)
        for values in (["If-Match", current], ['"9"', current], [current, '"9"']):
            lines = [("If-Match", value) for value in values if value != "If-Match"]
            headers = [*api.client.headers.items(), *lines]
            response = await api.client.request(
                "PUT",
                "/sessions/ci-42",
                params={"project": "checkout", "environment": "staging"},
                headers=headers,
                json={"label": "a"},
            )
            assert response.status_code == 200

    async def test_on_an_override_is_refused_not_ignored(self, api: API) -> None:
        await api.put("ci-42")
        for name in ("If-Match", "If-None-Match"):
            for method in ("POST", "DELETE"):
                response = await api.call(method, "/sessions/ci-42/overrides/ovr_a", headers={name: "*"})
                assert_error(response, 422, "invalid_query", name)
        assert (await api.get("ci-42")).json()["overrides"] == []

    async def test_only_one_of_two_writers_wins(self, api: API) -> None:
        current = (await api.put("ci-42", {"label": "a"})).headers["etag"]

        first = await api.put("ci-42", {"label": "b"}, headers={"If-Match": current})
        second = await api.put("ci-42", {"label": "c"}, headers={"If-Match": current})

        assert (first.status_code, second.status_code) == (200, 412)
        assert (await api.get("ci-42")).json()["label"] == "b"


class TestIfNoneMatch:
    async def test_star_on_put_creates_and_never_changes(self, api: API) -> None:
        headers = {"If-None-Match": "*"}

        assert (await api.put("ci-42", {"label": "a"}, headers=headers)).status_code == 200
        assert_error(await api.put("ci-42", {"label": "b"}, headers=headers), 412, "precondition_failed")
        assert (await api.get("ci-42")).json()["label"] == "a"

    @pytest.mark.parametrize("value", ['"1"', "1", ""])
    async def test_anything_else_on_put_is_422(self, api: API, value: str) -> None:
        assert_error(await api.put("ci-42", headers={"If-None-Match": value}), 422, "invalid_query", "If-None-Match")
        assert (await api.get("ci-42")).status_code == 404

    async def test_on_delete_is_refused_not_ignored(self, api: API) -> None:
        await api.put("ci-42")

        response = await api.delete("ci-42", "delete", headers={"If-None-Match": "*"})

        assert_error(response, 422, "invalid_query", "If-None-Match")
        assert (await api.get("ci-42")).status_code == 200

    @pytest.mark.parametrize("form", ["{}", "W/{}", '"9", {}', "*"])
    async def test_current_revision_on_get_is_304_without_a_body(self, api: API, form: str) -> None:
        await api.put("ci-42")
        current = await etag(api)

        for method in ("GET", "HEAD"):
            response = await api.call(method, "/sessions/ci-42", headers={"If-None-Match": form.format(current)})

            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == current
            assert response.headers["x-request-id"]

    @pytest.mark.parametrize("value", ['"9"', '"x"', 'W/"9"'])
    async def test_other_revision_on_get_is_200(self, api: API, value: str) -> None:
        await api.put("ci-42")

        assert (await api.get("ci-42", headers={"If-None-Match": value})).status_code == 200

    async def test_malformed_on_get_is_422(self, api: API) -> None:
        await api.put("ci-42")

        assert_error(await api.get("ci-42", headers={"If-None-Match": "1"}), 422, "invalid_query", "If-None-Match")

    async def test_on_get_of_a_session_that_does_not_exist_is_404(self, api: API) -> None:
        assert_error(await api.get("ci-42", headers={"If-None-Match": "*"}), 404, "not_found")
