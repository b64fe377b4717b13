"""Each validator of the checker accepts correct histories and finds planted violations, in small handmade histories."""

from __future__ import annotations

from typing import Any

import pytest

from .checker.history import Contents, Fault, History, Looks, Outcome, Record, Stall, Stored, Write, of_project
from .checker.plan import KINDS, plan_rounds
from .checker.trace import trace_of
from .checker.validators import LONGEST_WAIT_LEASES, VALIDATORS, WAIT_MARGIN_S, violations_of

LEASE_S = 1.0
TTL_S = {"main": 24 * 3600.0, "brief": 1.5}


def put(
    token: str,
    started: float,
    ended: float,
    revision: int,
    outcome: Outcome = "done",
    key: str = "main/k",
    **more: Any,
) -> Write:
    return Write(
        writer="writer/0",
        key=key,
        token=token,
        digest=f"digest of {token}",
        started=started,
        ended=ended,
        outcome=outcome,
        revision=revision,
        **more,
    )


def delete(started: float, ended: float, revision: int, outcome: Outcome = "done", **more: Any) -> Write:
    return Write(
        writer="writer/1", key="main/k", started=started, ended=ended, outcome=outcome, revision=revision, **more
    )


def look(
    began: float,
    revision: int = 0,
    token: str = "",
    *,
    fresh: bool = True,
    key: str = "main/k",
    ended: float | None = None,
    last_began: float | None = None,
    **more: Any,
) -> Looks:
    ended = began + 0.001 if ended is None else ended
    return Looks(
        observer="view/strict",
        fresh=fresh,
        key=key,
        revision=revision,
        token=token,
        digest=f"digest of {token}" if token else "",
        count=1,
        first_began=began,
        first_ended=ended,
        last_began=began if last_began is None else last_began,
        last_ended=ended if last_began is None else last_began + 0.001,
        last_began_ms=more.pop("began_ms", 0.0),
        **more,
    )


def loss(started: float, ended: float, loses: Any = "all", **more: Any) -> Fault:
    return Fault(kind="flushall", target="", started=started, ended=ended, loses=loses, outage=True, **more)


def failover(strays: str) -> Fault:
    """A replica took over at 1.6; until 2.5, one process used the old primary."""
    return loss(1.5, 1.6, "tail", strays=(strays,), stray_from=1.5, stray_until=2.5)


def cut_off(target: str) -> Fault:
    """One process could not reach Redis."""
    return Fault(kind="primary-cut-off", target=target, started=0.1, ended=0.2, outage=True)


def found(*records: Record, by: str) -> list[str]:
    """The violations that one validator finds."""
    return [one.what for one in VALIDATORS[by](History(records, lease_s=LEASE_S, ttl_s=TTL_S))]


def test_what_one_project_loses_excuses_no_other() -> None:
    key = "checkout/main/k"
    records: list[Record] = [put("new", 0.5, 1.0, 1, key=key), loss(1.5, 1.6, projects=("search",)), look(2.0, key=key)]

    history = History(of_project(records, "checkout"), lease_s=LEASE_S, ttl_s=TTL_S)

    assert len(violations_of(history)) == 1
    assert not list(of_project([records[0], records[2]], "search"))
    assert list(of_project([records[1]], "search"))


# (a)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([look(2.0, 2, "new")], id="what was written"),
        pytest.param([put("newer", 1.9, 2.5, 3), look(2.0, 3, "newer")], id="what is being written"),
        pytest.param([look(0.5, 1, "old"), look(0.9, 2, "new")], id="either of them while it is written"),
        pytest.param([look(0.9, 1, "old", ended=3.0)], id="the state before, looked up since before it returned"),
        pytest.param([look(2.0, 1, "old", fresh=False)], id="the state before, not fresh"),
        pytest.param([delete(1.5, 1.8, 3, existed=True), look(2.0)], id="nothing, after a deletion"),
        pytest.param([delete(0.8, 2.5, 0, "unknown"), look(2.0)], id="nothing, and a deletion may have come"),
        pytest.param([loss(1.5, 1.6), look(2.0)], id="nothing, after a flush"),
        pytest.param([loss(1.5, 1.6, "tail"), look(2.0, 1, "old")], id="the state before, after a loss"),
        pytest.param([loss(1.5, 3.0), look(2.0, 2, "new")], id="what was written, while a loss may have come"),
        pytest.param(
            [loss(1.5, 1.6), put("first", 1.7, 1.8, 1), look(2.0, 1, "first")], id="what was written since the flush"
        ),
        pytest.param(
            [loss(1.5, 1.6, "tail"), put("new", 1.9, 1.95, 2), look(1.7, 2, "new", last_began=2.0)],
            id="what was written before a loss, and again since, without a change",
        ),
        pytest.param(
            [put("short", 0.0, 0.1, 3, key="brief/k"), look(1.5, key="brief/k")], id="nothing, after it has expired"
        ),
        pytest.param(
            [failover("writer/"), put("lost", 2.0, 2.1, 3), look(2.2, 2, "new")],
            id="the state before, after a write to the part that is lost",
        ),
    ],
)
def test_a_accepts_a_look_up_of(records: list[Record]) -> None:
    assert found(put("old", 0.0, 0.1, 1), put("new", 0.5, 1.0, 2), *records, by="a") == []


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([look(2.0, 1, "old")], id="the state before"),
        pytest.param([look(0.5, 1, "old", last_began=1.1)], id="the state before, for too long"),
        pytest.param([look(2.0)], id="nothing"),
        pytest.param([delete(0.2, 0.3, 0), look(2.0)], id="nothing, after an earlier deletion"),
        pytest.param([delete(0.2, 1.9, 1, existed=True), look(2.0)], id="nothing, after a deletion of lower revision"),
        pytest.param([delete(1.5, 1.8, 3, "failed"), look(2.0)], id="nothing, after a deletion that failed"),
        pytest.param([delete(0.4, 1.5, 0, existed=False), look(2.0)], id="nothing, after one that found nothing"),
        pytest.param([delete(1.5, 1.8, 3, existed=True), look(2.0, 2, "new")], id="what was deleted"),
        pytest.param([delete(1.5, 1.8, 0), look(2.0, 2, "new")], id="what was deleted, at an unknown revision"),
        pytest.param([loss(3.0, 3.1), look(2.0, 1, "old")], id="the state before, and a loss that comes later"),
        pytest.param(
            [loss(1.5, 1.6), put("first", 1.7, 1.8, 1), look(2.0, 2, "new")], id="what was flushed, after a new write"
        ),
        pytest.param([loss(1.5, 1.6), put("first", 1.7, 1.8, 1), look(2.0)], id="nothing, after a new write"),
        pytest.param(
            [failover("other/"), put("kept", 2.0, 2.1, 3), look(2.2, 2, "new")],
            id="the state before, after a write to the new primary",
        ),
        pytest.param(
            [failover("writer/"), put("kept", 2.6, 2.7, 3), look(2.8, 2, "new")],
            id="the state before, after a write once the network is whole",
        ),
        pytest.param(
            [put("short", 0.0, 0.1, 3, key="brief/k"), look(1.0, key="brief/k")], id="nothing, before it has expired"
        ),
    ],
)
def test_a_finds(records: list[Record]) -> None:
    assert len(found(put("old", 0.0, 0.1, 1), put("new", 0.5, 1.0, 2), *records, by="a")) == 1


# (b)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([look(1.0, 1, "old"), look(2.0, 2, "new"), look(3.0, 2, "new")], id="forward"),
        pytest.param([look(1.0, 2, "new"), loss(1.5, 1.6, "tail"), look(2.0, 1, "old")], id="to a state before a loss"),
        pytest.param(
            [look(1.0, 2, "new"), loss(1.5, 1.6), put("first", 1.7, 1.8, 1), look(2.0, 1, "first")],
            id="to a write after a flush",
        ),
        pytest.param([look(1.0, 2, "new"), loss(0.2, 0.3), look(2.0)], id="to nothing, long after a flush"),
        pytest.param(
            [look(1.0, 2, "new"), delete(1.1, 1.2, 3, existed=True), look(2.0)], id="to nothing, after a deletion"
        ),
        pytest.param(
            [look(1.0, 2, "short", key="brief/k"), put("short", 0.0, 0.1, 2, key="brief/k"), look(1.2, key="brief/k")],
            id="to nothing, where sessions expire",
        ),
    ],
)
def test_b_accepts_a_view_that_goes(records: list[Record]) -> None:
    assert found(put("old", 0.0, 0.1, 1), put("new", 0.2, 0.9, 2), *records, by="b") == []


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([look(1.0, 2, "new", fresh=False), look(2.0, 1, "old", fresh=False)], id="back"),
        pytest.param(
            [look(1.0, 2, "new"), loss(2.5, 2.6, "tail"), look(2.0, 1, "old")], id="back, and a loss that comes later"
        ),
        pytest.param(
            [
                look(1.0, 2, "new"),
                loss(1.5, 1.6, "tail"),
                put("newer", 1.7, 1.8, 2),
                look(2.0, 2, "newer"),
                look(2.1, 1, "old"),
            ],
            id="back, twice for one loss",
        ),
        pytest.param([look(1.0, 2, "new"), loss(1.5, 1.6), look(2.0, 1, "old")], id="back to what was flushed"),
        pytest.param(
            [look(1.0, 2, "new"), delete(1.1, 1.2, 3, existed=True), look(2.0), look(2.1, 2, "new")],
            id="back to what was deleted",
        ),
        pytest.param([look(1.0, 2, "new"), look(2.0)], id="to nothing, without a deletion"),
    ],
)
def test_b_finds(records: list[Record]) -> None:
    assert len(found(put("old", 0.0, 0.1, 1), put("new", 0.2, 0.9, 2), *records, by="b")) == 1


# (c)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([put("x", 0.0, 0.1, 1), look(1.0, 1, "x")], id="done"),
        pytest.param([put("x", 0.0, 0.1, 1, "committed"), look(1.0, 1, "x")], id="committed"),
        pytest.param([put("x", 0.0, 0.1, 0, "unknown"), look(1.0, 7, "x")], id="of unknown outcome"),
        pytest.param([put("x", 0.0, 2.0, 1), look(1.0, 1, "x")], id="not answered yet"),
        pytest.param([put("x", 0.0, 0.1, 1), put("x", 3.0, 3.1, 4), look(1.0, 1, "x")], id="set again later"),
        pytest.param([look(1.0)], id="nothing"),
    ],
)
def test_c_accepts_a_state_that_is(records: list[Record]) -> None:
    assert found(*records, by="c") == []


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([look(1.0, 1, "x")], id="of no write"),
        pytest.param([put("x", 0.0, 0.1, 1, "failed"), look(1.0, 1, "x")], id="failed"),
        pytest.param([put("x", 0.0, 0.1, 1), look(1.0, 2, "x")], id="of another revision"),
        pytest.param([put("x", 0.0, 0.1, 1, key="main/other"), look(1.0, 1, "x")], id="of another session"),
        pytest.param([put("x", 2.0, 2.1, 1), look(1.0, 1, "x")], id="of the future"),
        pytest.param([put("x", 0.0, 0.1, 1, "unknown"), put("y", 0.0, 0.1, 2), look(1.0, 1, "y")], id="mixed up"),
    ],
)
def test_c_finds_a_state_that_is(records: list[Record]) -> None:
    assert len(found(*records, by="c")) == 1


def test_c_finds_a_mixed_state() -> None:
    write = put("x", 0.0, 0.1, 1)
    shown = Looks(
        observer="view/strict",
        fresh=True,
        key="main/k",
        revision=1,
        token="x",
        digest="half of it",
        count=1,
        first_began=1.0,
        first_ended=1.1,
        last_began=1.0,
        last_ended=1.1,
        last_began_ms=0.0,
    )
    assert len(found(write, shown, by="c")) == 1


# (d)


def test_d_finds_a_look_up_after_the_expiry() -> None:
    alive = look(1.0, 1, "x", expires_at=5000, began_ms=4999.0, fresh=False)
    late = look(1.0, 1, "x", expires_at=5000, began_ms=5100.0, fresh=False)
    assert found(alive, by="d") == []
    assert found(late, by="d") == ["showed revision 1 100 ms after its expiry"]
    assert found(look(1.0, began_ms=5100.0), by="d") == []


# (e)


def contents(holder: str, revision: int = 7, stored: int = 5, **more: Any) -> Contents:
    sessions = {"main/k": Stored(stored, "digest", 1000)}
    return Contents(round=0, holder=holder, environment="main", revision=revision, sessions=sessions, **more)


def test_e_accepts_a_view_that_ends_equal_to_redis() -> None:
    assert found(contents("redis"), contents("view"), by="e") == []


@pytest.mark.parametrize(("read_at_ms", "violations"), [(985.0, 0), (975.0, 1)])
def test_e_accepts_a_session_that_expires_a_little_early(read_at_ms: float, violations: int) -> None:
    without = Contents(round=0, holder="view", environment="main", revision=7, sessions={})
    assert len(found(contents("redis", read_at_ms=read_at_ms), without, by="e")) == violations


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(contents("view", fresh=False), id="stale"),
        pytest.param(contents("view", revision=6), id="behind"),
        pytest.param(contents("view", stored=4), id="with another state"),
        pytest.param(
            Contents(round=0, holder="view", environment="main", revision=7, sessions={}), id="without a session"
        ),
    ],
)
def test_e_finds_a_view_that_ends(held: Contents) -> None:
    assert len(found(contents("redis"), held, by="e")) == 1


def test_e_finds_a_view_with_a_session_that_redis_lacks() -> None:
    without = Contents(round=0, holder="redis", environment="main", revision=7, read_at_ms=999.0, sessions={})
    assert len(found(without, contents("view"), by="e")) == 1


# (f)

LONGEST_S = LONGEST_WAIT_LEASES * LEASE_S + WAIT_MARGIN_S


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([put("x", 0.0, LONGEST_S, 1, effective_s=LONGEST_S)], id="for the longest time allowed"),
        pytest.param([put("x", 0.0, 9.0, 1, effective_s=0.1)], id="where the commit took long"),
        pytest.param([put("x", 0.0, 3.8, 1), loss(1.0, 2.0)], id="where Redis was away"),
        pytest.param(
            [put("x", 0.0, 3.5, 1), Stall(process="view", started=1.0, ended=2.9)], id="where the machine stalled"
        ),
        pytest.param(
            [
                put("x", 0.0, 3.5, 1),
                Fault(kind="gateway-stopped", target="writer", started=1.0, ended=2.9),
            ],
            id="where its gateway was stopped",
        ),
        pytest.param([put("x", 0.0, 0.5, 1, "committed", detail="lost"), loss(0.1, 0.2)], id="in vain, after a loss"),
        pytest.param(
            [put("x", 0.0, 0.5, 1, "committed", detail="lost"), cut_off("writer")], id="in vain, cut off from Redis"
        ),
    ],
)
def test_f_accepts_a_write_that_waited(records: list[Record]) -> None:
    assert found(*records, by="f") == []


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([put("x", 0.0, 2.0, 1, effective_s=2 * LEASE_S)], id="two leases"),
        pytest.param([put("x", 0.0, 2.0, 1)], id="two leases, by its own clock"),
        pytest.param(
            [put("x", 0.0, 0.5, 1, "committed", detail="lost"), cut_off("other")], id="in vain, another one cut off"
        ),
        pytest.param([put("x", 0.0, 5.0, 1), loss(1.0, 2.0)], id="longer than Redis was away"),
        pytest.param([put("x", 0.0, 2.0, 1), loss(3.0, 4.0)], id="before Redis was away"),
        pytest.param(
            [put("x", 0.0, 2.4, 1), *(Stall(process=f"view-{n}", started=1.0, ended=1.2) for n in range(5))],
            id="longer than the machine stalled, by many views",
        ),
        pytest.param([put("x", 0.0, 0.5, 1, "committed", detail="outlasted")], id="in vain"),
    ],
)
def test_f_finds_a_write_that_waited(records: list[Record]) -> None:
    assert len(found(*records, by="f")) == 1


# The rest


def test_a_trace_shows_what_led_to_a_violation() -> None:
    """Given a view that is behind, when its trace is printed, then it names the write, the fault and the look-ups."""
    history = History(
        [
            put("old", 0.0, 0.1, 1),
            put("new", 0.5, 1.0, 2),
            look(2.0, 1, "old"),
            Fault(kind="view-stopped", target="view", started=0.2, ended=1.9),
            put("elsewhere", 1.0, 1.1, 3, key="main/other"),
        ],
        lease_s=LEASE_S,
        ttl_s=TTL_S,
    )
    violation, *others = violations_of(history)
    trace = trace_of(history, violation)
    assert others == []
    for shown in ("put old", "put new", "FAULT view-stopped", "1 look-ups: revision 1 old"):
        assert shown in trace
    assert "elsewhere" not in trace


def test_a_seed_decides_the_plan_and_it_has_every_fault() -> None:
    assert plan_rounds(7, 8, KINDS) == plan_rounds(7, 8, KINDS)
    assert plan_rounds(7, 8, KINDS) != plan_rounds(8, 8, KINDS)
    for seed in range(50):
        drawn = {planned.kind for plan in plan_rounds(seed, 4, KINDS) for planned in plan}
        assert drawn == set(KINDS)
