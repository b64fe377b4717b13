"""GET /views, which tells if a proxy serves an environment."""

from __future__ import annotations

import os

import sessionstore

from ..support.gateway import API, PLACE, assert_error


async def test_shows_what_each_proxy_says_of_itself(api: API) -> None:
    async with api.store.environment("checkout", "staging").view():
        put = await api.put("ci-42")
        response = await api.call("GET", "/views")
    assert response.status_code == 200
    document = response.json()
    assert list(document) == ["revision", "views", "elsewhere"]
    [view] = document["views"]
    assert list(view) == ["host", "pid", "version", "revision", "leaseLeftMs"]
    assert (view["pid"], view["version"]) == (os.getpid(), sessionstore.__version__)
    assert view["revision"] == document["revision"] == int(put.headers["etag"].strip('"'))
    assert view["leaseLeftMs"] > 0
    assert document["elsewhere"] == {}


async def test_names_the_other_environments_with_views(api: API) -> None:
    environments: dict[str, object] = {name: {"mocks": [], "scenarios": []} for name in ("staging", "uat", "qa")}
    await api.store.project("checkout").apply_catalog({"project": "checkout", "environments": environments})
    async with api.store.environment("checkout", "uat").view():
        response = await api.call("GET", "/views")
    assert response.json() == {"revision": 1, "views": [], "elsewhere": {"uat": 1}}
    assert_error(await api.call("GET", "/views", params={**PLACE, "environment": "prod"}), 404, "not_found", "uat")
    assert_error(await api.call("GET", "/views", params={"project": "checkout"}), 422, "environment_required")
    assert_error(await api.call("GET", "/views", params={**PLACE, "limit": "1"}), 422, "invalid_query", "limit")


async def test_head_works_too(api: API) -> None:
    head = await api.call("HEAD", "/views")
    assert (head.status_code, head.content) == (200, b"")
