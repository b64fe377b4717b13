"""snapshot.lua: one step of a snapshot."""

from __future__ import annotations

import pytest

from ..support.scripts import Scripts, published


def test_an_environment_that_was_never_written(scripts: Scripts) -> None:
    reply = scripts.run("snapshot", [scripts.head, scripts.index], ["0", 100])

    assert reply == {
        "now": reply["now"],
        "rev": 0,
        "id": "",
        "cursor": "0",
        "members": [],
        "sessions": [],
        "corrupt": [],
    }


def test_it_names_the_revision_that_it_was_read_at(scripts: Scripts) -> None:
    # Given an environment that was written twice
    scripts.put("ci-1", op="first")
    scripts.put("ci-2", op="second")

    # When a step is read
    before = scripts.everything()
    reply = scripts.run("snapshot", [scripts.head, scripts.index], ["0", 100])

    # Then it names the last write, finds both sessions, reads none, and changes and publishes nothing
    assert (reply["rev"], reply["id"]) == (2, "second")
    assert set(reply["members"]) == {"ci-1", "ci-2"}
    assert reply["sessions"] == []
    assert scripts.everything() == before
    scripts.messages()


def test_it_reads_the_sessions_that_exist(scripts: Scripts) -> None:
    # Given a live session, a deleted one, and an expired one
    name = 'a:{b}"\\/é'
    scripts.put(name, "+label", "x")
    now = scripts.now()
    scripts.store("ended", expiresAt=now)
    keys = [name, "gone", "ended"]

    # When a step names all three and asks for no members
    reply = scripts.run("snapshot", [scripts.head, scripts.index, *map(scripts.session, keys)], ["7", 0, *keys])

    # Then it returns the live one, as a message would, and the cursor stays
    [published] = [message["session"] for message in scripts.messages()]
    assert reply["sessions"] == [published]
    assert reply["members"] == []
    assert reply["cursor"] == "7"


@pytest.mark.parametrize(
    "fields",
    [
        {"label": 'a "b" \\ \n é', "scenario": "scn_é", "overrides": '["ovr_a","ovr_b-C_1"]'},
        {"label": "", "scenario": "", "overrides": "[]", "globalDelayMs": "0", "globalDelayMaxMs": "120000"},
        {"rev": "007", "createdAt": "0", "globalDelayMs": "1e3", "globalDelayMaxMs": " 2.0 "},
        {"rev": "9007199254740991", "createdAt": "0x10"},
        {"rev": "1000000000000000000000"},
    ],
)
def test_it_reads_a_session_as_others_do(scripts: Scripts, fields: dict[str, str]) -> None:
    # Given a session as this library writes it, or as something else does
    scripts.put("ci-1")
    scripts.store("ci-42", **fields)
    keys, args = [scripts.session("ci-42")], ["ci-42"]

    # When a step of a snapshot reads it, and the script that reads sessions for a caller
    reply = scripts.run("snapshot", [scripts.head, scripts.index, *keys], ["0", 0, *args])
    read = scripts.run("read", keys, [*args])

    # Then both have the same session, or find it corrupt
    assert reply["sessions"] == [published(session) for session in read["sessions"]]
    assert reply["corrupt"] == read["corrupt"]
    assert len(reply["sessions"]) + len(reply["corrupt"]) == 1


def test_every_member_is_found_while_others_come_and_go(scripts: Scripts) -> None:
    # Given more members than Redis returns at once
    names = {f"ci-{number}" for number in range(500)} | {'"\\/\né'}
    scripts.redis.zadd(scripts.index, dict.fromkeys(names, 5))

    # When steps follow the cursor to its end, and other members are added and removed on the way
    found: set[str] = set()
    cursor, steps = "0", 0
    while True:
        reply = scripts.run("snapshot", [scripts.head, scripts.index], [cursor, 100])
        found.update(reply["members"])
        cursor = reply["cursor"]
        steps += 1
        scripts.redis.zadd(scripts.index, {f"late-{steps}": 5})
        scripts.redis.zrem(scripts.index, f"late-{steps - 1}")
        if cursor == "0":
            break

    # Then each member that was there throughout was found
    assert found >= names
    assert steps > 1
