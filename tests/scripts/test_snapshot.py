"""snapshot.lua: one step of a snapshot."""

from __future__ import annotations

from ..support.scripts import Scripts


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
    # Given a session, one that is gone, and one that has expired
    name = 'a:{b}"\\/é'
    scripts.put(name, "+label", "x")
    now = scripts.now()
    scripts.store("ended", expiresAt=now)
    keys = [name, "gone", "ended"]

    # When a step names all three and asks for no members
    reply = scripts.run("snapshot", [scripts.head, scripts.index, *map(scripts.session, keys)], ["7", 0, *keys])

    # Then it has the one that lives, as a message would, and the cursor stays
    [published] = [message["session"] for message in scripts.messages()]
    assert reply["sessions"] == [published]
    assert reply["members"] == []
    assert reply["cursor"] == "7"


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
