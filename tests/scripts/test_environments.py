"""environments.lua: which environments a project has registered."""

from __future__ import annotations

from ..support.scripts import Scripts


def test_answers_with_the_registered_environments(scripts: Scripts) -> None:
    # Given none, then some
    assert scripts.run("environments", [scripts.environments], [])["environments"] == []
    scripts.redis.sadd(scripts.environments, "staging", "qa.2")

    reply = scripts.run("environments", [scripts.environments], [])
    assert sorted(reply["environments"]) == ["qa.2", "staging"]
    assert reply["now"] > 0
