"""GET /scenarios, where a pipeline finds scenario ids."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.gateway import API, PLACE, assert_error


def scenario(number: int, name: str) -> dict[str, Any]:
    return {
        "id": f"scn_{number}",
        "name": name,
        "urlId": f"url-{number}",
        "localMocks": [{"id": f"ovr_local{number}", "name": "local"}],
        "mocks": [f"ovr_local{number}"],
    }


async def offer(api: API, *names: str) -> None:
    scenarios = [scenario(number, name) for number, name in enumerate(names)]
    await api.store.project("checkout").apply_catalog(
        {"project": "checkout", "environments": {"staging": {"scenarios": scenarios}, "empty": {}}}
    )


async def listed(api: API, **params: str) -> tuple[list[str], str | None]:
    response = await api.call("GET", "/scenarios", params={**PLACE, **params})
    assert response.status_code == 200, response.text
    document = response.json()
    assert list(document) == ["scenarios", "nextBefore"]
    return [entry["name"] for entry in document["scenarios"]], document["nextBefore"]


class TestAnswer:
    async def test_is_as_in_the_contract(self, api: API) -> None:
        await offer(api, "Payment declined")

        response = await api.call("GET", "/scenarios")

        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.content == (
            b'{"scenarios":[{"id":"scn_0","name":"Payment declined","urlId":"url-0"}],"nextBefore":null}'
        )

    @pytest.mark.parametrize("wrong", ["SCN_0", "Scn_0", "url-0", "URL-0"])
    async def test_a_put_with_an_url_id_or_another_case_suggests_the_id(self, api: API, wrong: str) -> None:
        await offer(api, "Payment declined")
        response = await api.put("ci-42", {"scenario": wrong})
        assert_error(response, 422, "invalid_scenario", "Did you mean 'scn_0'?")

    async def test_head_is_without_a_body(self, api: API) -> None:
        head = await api.call("HEAD", "/scenarios")

        assert (head.status_code, head.content) == (200, b"")

    async def test_is_empty_without_a_catalog_and_with_an_empty_one(self, api: API) -> None:
        assert await listed(api) == ([], None)
        await offer(api, "Payment declined")
        assert await listed(api, environment="empty") == ([], None)

    async def test_unregistered_environment_is_404(self, api: API) -> None:
        await offer(api)

        response = await api.call("GET", "/scenarios", params={**PLACE, "environment": "prod"})

        assert_error(response, 404, "not_found", "'prod'")

    async def test_only_registered_environment_is_chosen_by_itself(self, api: API) -> None:
        await api.store.project("checkout").apply_catalog(
            {"project": "checkout", "environments": {"staging": {"scenarios": [scenario(0, "A")]}}}
        )

        response = await api.call("GET", "/scenarios", params={"project": "checkout"})

        assert [entry["name"] for entry in response.json()["scenarios"]] == ["A"]

    async def test_is_in_the_order_of_names_without_regard_to_case(self, api: API) -> None:
        await offer(api, "b", "C", "a", "Ä")

        assert await listed(api) == (["a", "b", "C", "Ä"], None)


class TestPages:
    async def test_fifty_to_a_page(self, api: API) -> None:
        names = [f"name {number:02d}" for number in range(51)]
        await offer(api, *names)

        first, before = await listed(api)
        assert first == names[:50]
        assert before is not None
        assert await listed(api, before=before) == (names[50:], None)

    async def test_of_two_have_every_one_once(self, api: API) -> None:
        names = ["a", "b", "c", "d", "e"]
        await offer(api, *names)

        found: list[str] = []
        before: str | None = None
        while True:
            page, before = await listed(api, limit="2", **({} if before is None else {"before": before}))
            found += page
            if before is None:
                break
        assert found == names

    async def test_of_one_name_have_every_one_once(self, api: API) -> None:
        await offer(api, "same", "same", "same")

        page, before = await listed(api, limit="2")
        assert page == ["same", "same"]
        assert before is not None
        assert await listed(api, limit="2", before=before) == (["same"], None)

    @pytest.mark.parametrize("limit", ["1", "100"])
    async def test_limit_at_its_bounds(self, api: API, limit: str) -> None:
        await offer(api, "a", "b")

        assert len((await listed(api, limit=limit))[0]) == min(2, int(limit))

    @pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "", "ten", "9" * 30])
    async def test_limit_past_its_bounds_is_422(self, api: API, limit: str) -> None:
        response = await api.call("GET", "/scenarios", params={**PLACE, "limit": limit})

        assert_error(response, 422, "invalid_query", "limit", "1 to 100")

    @pytest.mark.parametrize("before", ["", "x", "%%%", "bnVsbA", "WzEsMl0", "ä"])
    async def test_before_that_no_list_returned_is_422(self, api: API, before: str) -> None:
        response = await api.call("GET", "/scenarios", params={**PLACE, "before": before})

        assert_error(response, 422, "invalid_query", "before")


class TestSearch:
    @pytest.mark.parametrize(
        ("search", "found"),
        [
            ("declined", ["Payment declined"]),
            ("PAYMENT", ["Payment declined", "Payment ok"]),
            ("", ["100% & more", "Payment declined", "Payment ok", "Straße"]),
            ("% &", ["100% & more"]),
            ("strasse", ["Straße"]),
            ("STRASSE", ["Straße"]),
            (".*", []),
            ("x" * 200, []),
        ],
    )
    async def test_is_for_a_part_of_the_name_without_regard_to_case(
        self, api: API, search: str, found: list[str]
    ) -> None:
        await offer(api, "Payment declined", "Payment ok", "100% & more", "Straße")

        assert await listed(api, search=search) == (found, None)

    async def test_goes_on_over_pages(self, api: API) -> None:
        await offer(api, "a 1", "b", "a 2")

        page, before = await listed(api, search="a", limit="1")
        assert page == ["a 1"]
        assert before is not None
        assert await listed(api, search="a", limit="1", before=before) == (["a 2"], None)

    async def test_too_long_one_is_422(self, api: API) -> None:
        response = await api.call("GET", "/scenarios", params={**PLACE, "search": "x" * 201})

        assert_error(response, 422, "invalid_query", "search", "200")

    async def test_unknown_parameter_is_422(self, api: API) -> None:
        response = await api.call("GET", "/scenarios", params={**PLACE, "cursor": "x"})

        assert_error(response, 422, "invalid_query", "'cursor'")
