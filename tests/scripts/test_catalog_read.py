"""catalog_read.lua: read an environment's catalog."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.scripts import Scripts


def read(scripts: Scripts) -> dict[str, Any]:
    return scripts.run("catalog_read", [scripts.catalog, scripts.head, scripts.environments], [])


def test_an_environment_without_a_catalog(scripts: Scripts) -> None:
    reply = read(scripts)
    assert reply == {"now": reply["now"], "environments": [], "rev": 0, "catalog": None}


def test_the_catalog_as_it_is_published(scripts: Scripts) -> None:
    # Given a catalog, and the revision of its last change
    scripts.redis.hset(scripts.catalog, "json", '{"mocks":[{"id":"ovr_a","name":"Ä"}],"scenarios":[]}')
    scripts.redis.hset(scripts.head, mapping={"rev": 9, "layout": 2, "id": "x", "catalogRev": 7})
    scripts.redis.sadd(scripts.environments, "staging")

    reply = read(scripts)
    assert reply["catalog"] == {"mocks": [{"id": "ovr_a", "name": "Ä"}], "scenarios": []}
    assert (reply["rev"], reply["environments"]) == (7, ["staging"])


def test_a_catalog_that_was_taken_away_still_has_the_revision(scripts: Scripts) -> None:
    scripts.redis.hset(scripts.head, mapping={"rev": 9, "layout": 2, "id": "x", "catalogRev": 8})
    reply = read(scripts)
    assert (reply["rev"], reply["catalog"]) == (8, None)


def test_names_the_registered_environments(scripts: Scripts) -> None:
    scripts.redis.sadd(scripts.environments, "qa", "dev")
    assert sorted(read(scripts)["environments"]) == ["dev", "qa"]


def test_a_hash_that_the_library_did_not_write(scripts: Scripts) -> None:
    scripts.redis.hset(scripts.catalog, "something", "else")
    with pytest.raises(Exception, match="SSCORRUPT"):
        read(scripts)
