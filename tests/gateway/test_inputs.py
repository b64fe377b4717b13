"""Headers are parsed correctly, and a hostile one costs linear time."""

from __future__ import annotations

import pytest

from gateway import inputs
from gateway.errors import RequestError
from sessionstore.errors import InvalidQueryError


class TestPreferences:
    @pytest.mark.parametrize(
        ("value", "preferred"),
        [
            ('"' + "\\" * 100_000, False),
            ("," * 100_000, False),
            ("x;" * 50_000 + ",respond-async", True),
        ],
        ids=["escapes", "commas", "parameters"],
    )
    def test_are_read_in_one_pass(self, value: str, preferred: bool) -> None:
        assert inputs.prefers(value, "respond-async") is preferred


class TestEntityTags:
    def test_may_have_empty_members(self) -> None:
        assert inputs.parse_entity_tags(", " * 30_000 + '"7"', "If-Match", weak=False) == (7,)

    def test_star_may_have_white_space(self) -> None:
        assert inputs.parse_entity_tags("\t *", "If-Match", weak=False) == "*"


#: In quadratic time, each of these would take hours.
LONG = 1_000_000


class TestHostileHeader:
    """Each is rejected in linear time: the suite's time limit is the bound."""

    @pytest.mark.parametrize(
        "value", ["a" * LONG + '"', " " * LONG + '"', '"' + "\\" * LONG, ',"' * LONG], ids=lambda value: value[:4]
    )
    def test_prefer(self, value: str) -> None:
        assert not inputs.prefers(value, "respond-async")

    @pytest.mark.parametrize(
        "value", ["," + " " * LONG + "x", '"' * LONG, " ," * LONG + "x"], ids=lambda value: value[:4]
    )
    def test_entity_tags(self, value: str) -> None:
        with pytest.raises(InvalidQueryError):
            inputs.parse_entity_tags(value, "If-Match", weak=True)

    @pytest.mark.parametrize(
        "value",
        [
            "application/json" + " " * LONG + "x",
            "application/json;charset=utf-8" + " " * LONG + "x",
            "application/json;" + " " * LONG + "x",
        ],
        ids=lambda value: value[:40].strip(),
    )
    def test_media_type(self, value: str) -> None:
        with pytest.raises(RequestError, match="application/json"):
            inputs.check_media_type(value, None)
