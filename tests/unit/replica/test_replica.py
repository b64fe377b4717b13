"""The replica, event by event. What holds over any run of events is in test_replica_properties.py."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import structs

from sessionstore import Session, SessionStore
from sessionstore.catalog.model import Catalog, Mock
from sessionstore.protocol import calls
from sessionstore.protocol.calls import FIND_BATCH, SNAPSHOT_BATCH, Call
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.protocol.messages import CatalogChanged, ExpiryMoved, SessionDeleted, SessionSet, SessionState
from sessionstore.protocol.replies import CatalogReply, SnapshotReply
from sessionstore.replica.chain import KNOWN_REVISIONS
from sessionstore.replica.held_session import HeldSession
from sessionstore.replica.replica import TRANSITIONS, Event, Replica, State
from sessionstore.replica.snapshot import EARLY_MESSAGES

from ...support.redis_server import RedisServer
from ...support.replica_world import reached

KEYS = EnvironmentKeyspace("ss", "checkout", "staging")
NOW = 1_000
LATER = 10_000

CATALOG = Catalog(mocks=(Mock("ovr_a", "a"),))
OTHER_CATALOG = Catalog(mocks=(Mock("ovr_b", "b"),))

encode = msgspec.json.encode


def state(key: str, rev: int, *, label: str = "", expires_at: int = LATER, last_seen_at: int = NOW) -> SessionState:
    return SessionState(key, rev, label or f"r{rev}", None, ("ovr_a", "ovr_b"), 0, 0, NOW, last_seen_at, expires_at)


def identify(rev: int) -> str:
    return f"id{rev}" if rev else ""


def header(rev: int, **changes: Any) -> dict[str, Any]:
    return {"rev": rev, "id": identify(rev), "prev": identify(rev - 1), "at": NOW + 1, **changes}


def set_message(key: str, rev: int, *, expires_at: int = LATER, **changes: Any) -> bytes:
    return encode(SessionSet(**header(rev, **changes), session=state(key, rev, expires_at=expires_at)))


def delete_message(key: str, rev: int) -> bytes:
    return encode(SessionDeleted(**header(rev), session_key=key))


def expiry_message(key: str, rev: int, expires_at: int) -> bytes:
    return encode(ExpiryMoved(**header(rev), sessions=((key, expires_at, NOW + 5),)))


def catalog_message(catalog: Catalog | None, rev: int) -> bytes:
    return encode(CatalogChanged(**header(rev), catalog=catalog))


def page(
    rev: int,
    *sessions: SessionState,
    members: tuple[str, ...] = (),
    cursor: str = "0",
    now: int = NOW,
    id: str | None = None,  # noqa: A002  the field's name
) -> SnapshotReply:
    return SnapshotReply(now, rev, identify(rev) if id is None else id, cursor, members, sessions)


def catalog_reply(rev: int = 0, catalog: Catalog | None = None) -> CatalogReply:
    return CatalogReply(NOW, (), rev, catalog)


class Recorder(list[tuple[str, Session | None]]):
    """The arguments of a watcher."""

    def take(self) -> list[tuple[str, Session | None]]:
        taken = list(self)
        self.clear()
        return taken


@pytest.fixture
def replica() -> Replica:
    return Replica(KEYS)


@pytest.fixture
def told(replica: Replica) -> Recorder:
    recorder = Recorder()
    replica.watchers.append(lambda key, session: recorder.append((key, session)))
    return recorder


def due(replica: Replica) -> Call[Any]:
    call = replica.poll()
    assert call is not None, "a call is due"
    return call


def answer(replica: Replica, reply: Any) -> Call[Any]:
    """Answer the call that is due; after the first page, also the one that reads the catalog."""
    call = answer_one(replica, reply)
    snapshot = replica._snapshot
    if snapshot is not None and snapshot.chain is not None and not snapshot._catalog_read:
        answer_one(replica, catalog_reply())
    return call


def answer_one(replica: Replica, reply: Any) -> Call[Any]:
    call = due(replica)
    replica.answered(call, reply)
    return call


def make_live(replica: Replica, rev: int = 0, *sessions: SessionState) -> None:
    """Sync to `rev` with these sessions."""
    replica.subscribed()
    members = tuple(session.session_key for session in sessions)
    answer(replica, page(rev, members=members))
    if sessions:
        answer(replica, page(rev, *sessions))
    assert replica.state is State.LIVE


def where(replica: Replica) -> State:
    """Its state; a type checker would assume that it has not changed."""
    return replica.state


def labels(replica: Replica) -> dict[str, str | None]:
    return {key: session.label for key, session in replica.sessions.items()}


# From state to state


def test_the_table_has_a_row_for_each_state() -> None:
    assert set(TRANSITIONS) == set(State)
    assert [Event.COMPLETED in row for row in TRANSITIONS.values()] == [False, True, False]


def test_a_new_replica_is_empty_and_has_no_calls(replica: Replica) -> None:
    replica.message(set_message("a", 1))
    replica.resync("no reason")
    replica.lost("no link")

    assert where(replica) is State.EMPTY
    assert replica.poll() is None
    assert replica.sessions == {}
    assert replica.next_expiry_ms is None
    assert (replica.resyncs, replica.resync_reason, replica.awaited) == (0, None, None)
    assert not reached(replica, 0, "")


def test_a_confirmed_subscription_begins_a_sync(replica: Replica) -> None:
    # When the subscription is confirmed
    replica.subscribed()

    # Then the first step of a snapshot is due, once
    request = due(replica)
    assert request == calls.snapshot(KEYS, "0")
    assert replica.poll() is None
    assert where(replica) is State.SYNCING
    assert replica.resyncs == 0


def test_an_environment_that_was_never_written_is_live_after_one_step(replica: Replica) -> None:
    make_live(replica)

    assert (replica.rev, replica.id) == (0, "")
    assert reached(replica, 0, "")
    assert replica.message(set_message("a", 1)) is not None
    assert labels(replica) == {"a": "r1"}


def test_after_a_lost_connection_the_sessions_are_still_served(replica: Replica) -> None:
    # Given a live replica
    make_live(replica, 3, state("a", 2))

    # When the connection is lost
    replica.lost("the connection broke")

    # Then it serves its sessions, ignores messages, and keeps its position
    assert where(replica) is State.EMPTY
    assert labels(replica) == {"a": "r2"}
    assert replica.message(set_message("b", 4)) is None
    assert not reached(replica, 3, "id3")
    assert (replica.rev, replica.id, replica.resync_reason) == (3, "id3", "the connection broke")
    assert replica.poll() is None

    # And with the next connection, it syncs
    make_live(replica, 5, state("b", 4))
    assert labels(replica) == {"b": "r4"}
    assert replica.resyncs == 1


def test_a_subscription_that_is_confirmed_again_begins_a_sync_anew(replica: Replica) -> None:
    make_live(replica, 3)
    replica.subscribed()
    assert where(replica) is State.SYNCING
    first = due(replica)

    replica.subscribed()

    assert due(replica) is not first
    assert replica.resyncs == 2


def test_during_a_resync_the_old_sessions_are_served(replica: Replica) -> None:
    make_live(replica, 3, state("a", 2))

    replica.resync("a lease was refused")

    assert where(replica) is State.SYNCING
    assert labels(replica) == {"a": "r2"}
    assert (replica.rev, replica.resyncs, replica.resync_reason) == (3, 1, "a lease was refused")


def test_an_answer_of_an_earlier_sync_is_ignored(replica: Replica) -> None:
    # Given a call in flight, and a resync since
    replica.subscribed()
    request = due(replica)
    replica.resync("a lease was refused")

    following = due(replica)

    # When its answer arrives, or its failure
    replica.answered(request, page(7))
    replica.failed(request)

    # Then nothing has changed, and the next call is still in flight
    assert where(replica) is State.SYNCING
    assert replica.poll() is None
    replica.answered(following, page(8))
    answer(replica, catalog_reply())
    assert (where(replica), replica.rev) == (State.LIVE, 8)


def test_an_answer_counts_once(replica: Replica) -> None:
    replica.subscribed()
    request = answer(replica, page(1, members=("a",), cursor="5"))
    replica.answered(request, page(2, members=("b",)))

    assert due(replica) == calls.snapshot(KEYS, "5", ["a"])


# A sync


def test_nothing_is_served_before_a_sync_is_complete(replica: Replica, told: Recorder) -> None:
    # Given a session that is held
    make_live(replica, 1, state("a", 1))
    sessions = replica.sessions
    told.take()
    replica.resync("no reason")

    # When pages and messages bring others
    answer(replica, page(3, members=("b",), cursor="9"))
    replica.message(set_message("c", 4))
    call = due(replica)
    assert call == calls.snapshot(KEYS, "9", ["b"])
    assert labels(replica) == {"a": "r1"}

    # Then they are served after the last page, in the same dict, and reported
    replica.failed(call)
    answer(replica, page(4, members=("b",)))
    answer(replica, page(4, state("b", 2)))
    assert where(replica) is State.LIVE
    assert replica.sessions is sessions
    assert labels(replica) == {"b": "r2", "c": "r4"}
    assert {key: session and session.label for key, session in told.take()} == {"a": None, "b": "r2", "c": "r4"}


def test_a_step_reads_no_more_sessions_than_a_batch(replica: Replica) -> None:
    # Given a small index, which Redis returns at once
    keys = [f"s{number}" for number in range(2 * SNAPSHOT_BATCH + 1)]
    replica.subscribed()
    answer(replica, page(1, members=tuple(keys), cursor="7"))

    # Then they are read in batches, and the next members are found before all of these are read
    calls = [answer(replica, page(1, cursor="9")) for _ in range(3)]
    assert [len(call.keys) - 2 for call in calls] == [SNAPSHOT_BATCH, SNAPSHOT_BATCH, 1]
    assert [call.args[1] for call in calls] == [FIND_BATCH, FIND_BATCH, FIND_BATCH]
    assert [key for call in calls for key in call.args[2:]] == keys


def test_the_next_step_is_due_before_the_last_one_is_answered(replica: Replica) -> None:
    # Given two steps in flight, the second of which is answered first
    replica.subscribed()
    answer(replica, page(1, members=tuple(f"s{number}" for number in range(SNAPSHOT_BATCH + 1)), cursor="7"))
    first, second = due(replica), due(replica)
    assert replica.poll() is None
    assert [call.args[:2] for call in (first, second)] == [("7", FIND_BATCH), ("7", 0)]

    # When a change is committed and published between them
    replica.answered(second, page(3, state("s100", 1)))
    replica.message(set_message("a", 2))
    replica.message(set_message("b", 3))
    assert where(replica) is State.SYNCING
    replica.answered(first, page(2, *(state(f"s{number}", 1) for number in range(SNAPSHOT_BATCH))))

    # Then the sync is complete
    assert where(replica) is State.LIVE
    assert len(replica.sessions) == SNAPSHOT_BATCH + 3


def test_two_whole_steps_are_in_flight_until_all_is_asked_for(replica: Replica) -> None:
    # Given a large index
    keys = [f"s{number}" for number in range(8 * FIND_BATCH)]

    def run(call: Call[Any]) -> Any:
        if call.script.name == "catalog_read":
            return catalog_reply()
        start, count, *wanted = call.args
        found = keys[int(start) :][: int(count)]
        end = (int(start) + len(found)) % len(keys)
        return page(1, *(state(str(key), 1) for key in wanted), members=tuple(found), cursor=str(end))

    # When each step is answered in its turn
    replica.subscribed()
    calls_in_flight, flights = [due(replica)], []
    while calls_in_flight:
        answered = calls_in_flight.pop(0)
        replica.answered(answered, run(answered))
        while (call := replica.poll()) is not None:
            calls_in_flight.append(call)
        flights.append(len(calls_in_flight))

    # Then, after the first page and the catalog, Redis always has a step to run
    assert sorted(replica.sessions) == sorted(keys)
    steps = len(keys) // SNAPSHOT_BATCH
    assert flights == [1, *[2] * (steps - 1), 1, 0]


def test_a_step_that_was_asked_for_later_can_not_read_an_earlier_revision(replica: Replica) -> None:
    replica.subscribed()
    answer(replica, page(3, members=("a",), cursor="7"))

    answer(replica, page(2, cursor="8"))

    assert replica.resync_reason == "Redis went back from revision 3 to 2: it has lost part of its history"


def test_if_one_of_two_steps_fails_the_other_is_void(replica: Replica) -> None:
    # Given two steps in flight
    replica.subscribed()
    answer(replica, page(1, members=tuple(f"s{number}" for number in range(SNAPSHOT_BATCH + 1)), cursor="7"))
    first, second = due(replica), due(replica)

    # When one fails, then the index is read again from its start, and the other's cursor is ignored
    replica.failed(second)
    replica.answered(first, page(1, members=("z",), cursor="9"))
    assert due(replica) == calls.snapshot(KEYS, "0")


def test_messages_before_the_first_page_are_applied_after_it(replica: Replica) -> None:
    replica.subscribed()
    for rev in (1, 2, 3, 4):
        replica.message(set_message("a", rev, at=NOW if rev < 3 else NOW + 1))

    answer(replica, page(2))

    assert (replica.rev, labels(replica)) == (4, {"a": "r4"})
    assert where(replica) is State.LIVE


def test_messages_before_the_first_page_are_kept_up_to_a_bound(replica: Replica) -> None:
    for needed, expected in ((False, State.LIVE), (True, State.SYNCING)):
        # Given one message more than are kept
        replica.subscribed()
        for rev in range(1, EARLY_MESSAGES + 2):
            replica.message(set_message("a", rev, at=NOW))

        # When the first page has the dropped message, or lacks it
        answer(replica, page(0 if needed else 1))

        # Then nothing is missing, or the chain has a gap
        assert where(replica) is expected
    assert replica.resync_reason == "Redis published revision 2 after revision 0"


def test_a_message_that_the_first_page_contains_changes_nothing(replica: Replica) -> None:
    # Given a replica that has read revision 3 while the messages up to it were on their way
    make_live(replica, 3, state("a", 3))

    # When they come
    assert replica.message(set_message("a", 2, at=NOW)) is None
    assert replica.message(set_message("a", 3, at=NOW)) is None

    # Then it applies the next one
    assert where(replica) is State.LIVE
    assert replica.message(set_message("a", 4)) is not None

    # And after the next one, an old message causes a resync
    replica.message(set_message("a", 3, at=NOW))
    assert where(replica) is State.SYNCING


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(set_message("a", 2, at=NOW + 1), id="committed after the page was read"),
        pytest.param(set_message("a", 3, at=NOW, id="another"), id="another one of the page's revision"),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_an_old_message_that_the_first_page_lacks_causes_a_resync(replica: Replica, message: bytes, live: bool) -> None:
    replica.subscribed()
    answer(replica, page(3, cursor="0" if live else "1"))

    replica.message(message)

    assert replica.resyncs == 1


def test_a_session_that_was_deleted_before_its_page_arrived_stays_deleted(replica: Replica) -> None:
    replica.subscribed()
    answer(replica, page(1, members=("a", "b")))
    request = due(replica)
    replica.message(delete_message("a", 2))
    replica.answered(request, page(1, state("a", 1), state("b", 1)))

    assert where(replica) is State.LIVE
    assert labels(replica) == {"b": "r1"}


def test_a_session_that_was_set_before_its_page_arrived_keeps_that_state(replica: Replica) -> None:
    replica.subscribed()
    answer(replica, page(1, members=("a",)))
    request = due(replica)
    replica.message(delete_message("a", 2))
    replica.message(set_message("a", 3))
    replica.answered(request, page(1, state("a", 1)))

    assert labels(replica) == {"a": "r3"}


def test_an_expiry_that_moved_before_the_page_arrived_is_not_lost(replica: Replica) -> None:
    replica.subscribed()
    answer(replica, page(1, members=("a",)))
    request = due(replica)
    replica.message(expiry_message("a", 2, LATER + 1))
    replica.answered(request, page(1, state("a", 1)))

    session = replica.sessions["a"]
    assert (session.revision, session.expires_at, session.last_seen_at) == (1, LATER + 1, NOW + 5)
    assert replica.next_expiry_ms == LATER + 1


@pytest.mark.parametrize("message", [delete_message("a", 3), set_message("a", 3)])
def test_the_next_change_replaces_an_expiry_that_moved(replica: Replica, message: bytes) -> None:
    replica.subscribed()
    answer(replica, page(1, members=("a",)))
    replica.message(expiry_message("a", 2, LATER + 1))
    replica.message(message)
    answer(replica, page(1, state("a", 1)))

    assert where(replica) is State.LIVE
    assert replica.next_expiry_ms in (None, LATER)


def test_a_page_must_have_each_session_whose_expiry_moved(replica: Replica) -> None:
    for expires_at, expected in ((NOW, State.LIVE), (LATER, State.SYNCING)):
        # Given a message that the expiry of a session moved
        replica.subscribed()
        answer(replica, page(1, members=("a",)))
        replica.message(expiry_message("a", 2, expires_at))

        # When no page has it: it may have expired since
        answer(replica, page(2))
        assert where(replica) is expected


def test_a_sync_waits_for_messages_up_to_its_pages(replica: Replica) -> None:
    # Given pages that were read at revisions whose messages have not come yet
    replica.subscribed()
    answer(replica, page(1, members=("a",)))
    assert replica.awaited is None
    answer(replica, page(3, state("a", 3)))

    # Then the replica waits
    assert replica.poll() is None
    assert where(replica) is State.SYNCING
    assert replica.awaited == 3
    replica.message(set_message("a", 2))
    assert where(replica) is State.SYNCING

    # And is live with the last of them, which counts as part of the sync
    assert replica.message(set_message("a", 3)) is None
    assert (where(replica), replica.rev) == (State.LIVE, 3)
    assert not replica.awaited


def test_pages_of_another_history_than_the_messages_cause_a_resync(replica: Replica) -> None:
    # The message is there before the page
    replica.subscribed()
    answer(replica, page(1, members=("a",)))
    replica.message(set_message("b", 2))
    answer(replica, page(2, state("a", 2), id="another"))
    assert replica.resyncs == 1

    # The page is there before the message
    answer(replica, page(1, members=("a",)))
    answer(replica, page(2, state("a", 2), id="another"))
    replica.message(set_message("b", 2))
    assert replica.resyncs == 2

    # A page is older than the one before
    answer(replica, page(5, members=("a",)))
    answer(replica, page(4))
    assert replica.resyncs == 3
    assert replica.resync_reason == "Redis went back from revision 5 to 4: it has lost part of its history"


def test_a_page_that_is_too_old_to_compare_is_read_again(replica: Replica) -> None:
    # Given a page that is older than the ids which the chain keeps
    replica.subscribed()
    answer(replica, page(1, members=("a", "b")))
    request = due(replica)
    for rev in range(2, KNOWN_REVISIONS + 3):
        replica.message(set_message("a", rev))

    # When it arrives
    replica.answered(request, page(1, state("b", 1)))

    # Then the index is read again, but not the sessions that messages have brought
    assert replica.resyncs == 0
    answer(replica, page(KNOWN_REVISIONS + 2, members=("a", "b")))
    assert due(replica).args[2:] == ("b",)


def test_a_failed_call_is_due_again_from_the_start_of_the_index(replica: Replica) -> None:
    # Given a sync that is half way through the index
    replica.subscribed()
    answer(replica, page(1, members=("a",), cursor="5"))
    answer(replica, page(1, state("a", 1), members=("b",), cursor="6"))

    # When a call fails
    replica.failed(due(replica))

    # Then the index is read again, but not the sessions that were read
    assert answer(replica, page(1, members=("a", "b"))) == calls.snapshot(KEYS, "0")
    assert answer(replica, page(1, state("b", 1))).args[2:] == ("b",)
    assert labels(replica) == {"a": "r1", "b": "r1"}


def test_a_resync_keeps_the_objects_of_unchanged_sessions(replica: Replica, told: Recorder) -> None:
    # Given three sessions
    make_live(replica, 3, state("a", 1), state("b", 2), state("c", 3))
    held = dict(replica.sessions)
    told.take()

    # When a resync finds one unchanged, one only seen again, and one with a later expiry
    replica.resync("no reason")
    answer(replica, page(4, members=("a", "b", "c")))
    answer(replica, page(4, state("a", 1), state("b", 2, last_seen_at=NOW + 1), state("c", 3, expires_at=LATER + 1)))

    # Then the first is the same object, and only the later expiry is reported
    assert replica.sessions["a"] is held["a"]
    assert replica.sessions["b"].last_seen_at == NOW + 1
    assert told.take() == [("c", replica.sessions["c"])]


@pytest.mark.parametrize(
    "changed",
    [
        {"rev": 2},
        {"label": "other"},
        {"scenario": "scn_b"},
        {"overrides": ("ovr_b",)},
        {"global_delay_ms": 7},
        {"global_delay_max_ms": 7},
        {"created_at": NOW - 1},
        {"expires_at": LATER + 1},
    ],
)
def test_a_resync_reports_every_difference(replica: Replica, told: Recorder, changed: dict[str, Any]) -> None:
    # As after a restart with another history, when the revisions are equal
    before = state("a", 1)
    make_live(replica, 1, before)
    told.take()

    replica.resync("no reason")
    answer(replica, page(2, members=("a",)))
    answer(replica, page(2, structs.replace(before, **changed)))

    assert told.take() == [("a", replica.sessions["a"])]


def test_after_an_expiry_moved_a_look_up_is_recorded_again(replica: Replica) -> None:
    # Given a resync that has taken over a session which was looked up
    make_live(replica, 1, state("a", 1), state("b", 1))
    held = replica.sessions["a"]
    held.set_touched_at(7.0)
    replica.resync("no reason")
    answer(replica, page(1, members=("a",), cursor="7"))
    answer(replica, page(1, state("a", 1), members=("b",)))

    # When its expiry moves, the touches are flushed, and the resync completes
    replica.message(expiry_message("a", 2, LATER + 1))
    held.set_touched_at(0.0)
    answer(replica, page(2, state("b", 1)))

    # Then a look-up is recorded again
    assert (where(replica), replica.sessions["a"].expires_at) == (State.LIVE, LATER + 1)
    assert not replica.sessions["a"].touched_at


# The catalog


@pytest.fixture
def with_catalog() -> Replica:
    replica = Replica(KEYS)
    replica.subscribed()
    answer_one(replica, page(2))
    return replica


def test_the_catalog_is_read_after_the_first_page(with_catalog: Replica) -> None:
    assert where(with_catalog) is State.SYNCING
    request = answer_one(with_catalog, catalog_reply(2, CATALOG))

    assert request == calls.read_catalog(KEYS)
    assert where(with_catalog) is State.LIVE
    assert with_catalog.catalog == CATALOG


def test_a_catalog_that_a_message_brought_is_newer_than_one_that_was_read(with_catalog: Replica) -> None:
    for reply in (catalog_reply(2, CATALOG), catalog_reply(3, OTHER_CATALOG)):
        with_catalog.message(catalog_message(OTHER_CATALOG, 3))
        answer_one(with_catalog, reply)

        assert with_catalog.catalog == OTHER_CATALOG
        assert where(with_catalog) is State.LIVE
        with_catalog.resync("the next round")
        answer_one(with_catalog, page(2))


def test_a_catalog_ahead_of_the_messages_waits_for_its_own(with_catalog: Replica) -> None:
    answer_one(with_catalog, catalog_reply(4, CATALOG))
    assert (where(with_catalog), with_catalog.awaited) == (State.SYNCING, 4)
    with_catalog.message(set_message("a", 3))
    assert where(with_catalog) is State.SYNCING
    with_catalog.message(catalog_message(CATALOG, 4))
    assert where(with_catalog) is State.LIVE

    with_catalog.resync("the next round")
    answer_one(with_catalog, page(4))
    answer_one(with_catalog, catalog_reply(5, OTHER_CATALOG))
    with_catalog.message(set_message("a", 5))
    assert with_catalog.resync_reason == "no message brought the catalog of revision 5"


def test_a_catalog_is_changed_and_removed(with_catalog: Replica) -> None:
    answer_one(with_catalog, catalog_reply(2, CATALOG))

    catalogs = []
    for rev, catalog in ((3, OTHER_CATALOG), (4, None)):
        assert isinstance(with_catalog.message(catalog_message(catalog, rev)), CatalogChanged)
        catalogs.append(with_catalog.catalog)

    assert catalogs == [OTHER_CATALOG, None]
    assert with_catalog.rev == 4


# Live


def test_changes_are_applied_in_order_and_reported(replica: Replica, told: Recorder) -> None:
    make_live(replica, 1, state("a", 1))
    told.take()

    # A session is set
    change = replica.message(set_message("b", 2))
    assert isinstance(change, SessionSet)
    assert labels(replica) == {"a": "r1", "b": "r2"}
    assert told.take() == [("b", replica.sessions["b"])]

    # Its expiry moves, and its revision stays
    replica.message(expiry_message("b", 3, LATER + 7))
    session = replica.sessions["b"]
    assert (session.revision, session.expires_at, session.last_seen_at) == (2, LATER + 7, NOW + 5)
    assert told.take() == [("b", session)]

    # It is deleted
    replica.message(delete_message("b", 4))
    assert labels(replica) == {"a": "r1"}
    assert told.take() == [("b", None)]

    # A session is deleted that has expired here already
    replica.expire(LATER)
    told.take()
    assert replica.message(delete_message("a", 5)) is not None
    assert told.take() == []
    assert (replica.rev, replica.id, replica.state) == (5, "id5", State.LIVE)


def test_a_change_can_be_read_before_its_position(replica: Replica) -> None:
    # A view that acknowledged a revision before it served it would break the promise of a lease.
    make_live(replica, 1, state("a", 1))
    seen = []

    class Sessions(dict[str, HeldSession]):
        def __setitem__(self, key: str, session: HeldSession) -> None:
            super().__setitem__(key, session)
            seen.append((replica.rev, replica.id))

    replica.sessions = Sessions(replica.sessions)
    replica.message(set_message("a", 2))
    replica.message(expiry_message("a", 3, LATER + 1))

    assert seen == [(1, "id1"), (2, "id2")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(set_message("b", 4), "Redis published revision 4 after revision 2", id="a gap"),
        pytest.param(set_message("b", 2), "Redis published revision 2 after revision 2", id="a step back"),
        pytest.param(
            set_message("b", 3, prev="another"),
            "Redis published revision 3 of another history: it has lost part of its history",
            id="another history",
        ),
        pytest.param(
            expiry_message("b", 3, LATER),
            "a message moved the expiry of a session that is not held",
            id="unknown session",
        ),
        pytest.param(b"", "a message did not decode", id="empty"),
        pytest.param(set_message("b", 3)[:-1], "a message did not decode", id="cut"),
        pytest.param("\ud800", "a message did not decode", id="not text"),
        pytest.param(b'{"type":"set","x":' + b"[" * 100_000, "a message did not decode", id="deeply nested"),
        pytest.param(b'{"type":"other","rev":3,"id":"id3","prev":"id2","at":1}', "a message did not decode", id="type"),
    ],
)
def test_a_message_that_does_not_fit_causes_a_resync(replica: Replica, message: bytes | str, reason: str) -> None:
    make_live(replica, 2, state("a", 1))

    assert replica.message(message) is None

    assert where(replica) is State.SYNCING
    assert replica.resync_reason == reason
    assert (labels(replica), replica.rev, replica.id) == ({"a": "r1"}, 2, "id2")


def test_an_expiry_of_an_unknown_session_leaves_the_known_ones(replica: Replica) -> None:
    make_live(replica, 2, state("a", 1))
    replica.message(encode(ExpiryMoved(**header(3), sessions=(("a", LATER + 1, NOW), ("b", LATER + 1, NOW)))))

    assert replica.sessions["a"].expires_at == LATER


# Positions that Redis names


def test_a_head_is_reached_when_it_is_applied(replica: Replica) -> None:
    make_live(replica, 2)

    assert not reached(replica, 3, "id3")
    replica.message(set_message("a", 3))
    assert reached(replica, 3, "id3")
    # messages may arrive before the answer
    replica.message(set_message("a", 4))
    assert reached(replica, 3, "id3", since=3)
    assert where(replica) is State.LIVE


@pytest.mark.parametrize(("rev", "head_id", "since"), [(3, "another", 0), (2, "another", 0), (2, "id2", 3)])
def test_a_contradictory_head_causes_a_resync(replica: Replica, rev: int, head_id: str, since: int) -> None:
    make_live(replica, 2)
    replica.message(set_message("a", 3))

    assert not reached(replica, rev, head_id, since=since)

    assert where(replica) is State.SYNCING
    assert "it has lost part of its history" in str(replica.resync_reason)


def test_a_head_that_is_too_old_to_compare_proves_nothing(replica: Replica) -> None:
    make_live(replica)
    for rev in range(1, KNOWN_REVISIONS + 1):
        replica.message(set_message("a", rev))

    assert reached(replica, 1, "id1")
    assert not reached(replica, 0, "")
    assert where(replica) is State.LIVE


# Expiry


def test_sessions_leave_when_they_expire(replica: Replica, told: Recorder) -> None:
    # Given sessions with different expiries, one of which moves
    make_live(replica, 3, state("a", 1, expires_at=100), state("b", 2, expires_at=200), state("c", 3, expires_at=300))
    replica.message(expiry_message("a", 4, 250))
    told.take()

    # Then each is dropped at its expiry, in Redis time
    assert replica.next_expiry_ms == 200
    replica.expire(199)
    assert set(replica.sessions) == {"a", "b", "c"}
    replica.expire(200)
    assert told.take() == [("b", None)]
    assert replica.next_expiry_ms == 250
    replica.expire(1000)
    assert told.take() == [("a", None), ("c", None)]
    assert not replica.sessions
    assert not replica.next_expiry_ms


def test_sessions_expire_without_a_connection(replica: Replica) -> None:
    make_live(replica, 1, state("a", 1, expires_at=100))
    replica.lost("the connection broke")
    replica.expire(100)

    assert replica.sessions == {}


# Memory


def test_equal_values_are_held_once(replica: Replica) -> None:
    make_live(replica, 2, *msgspec.convert([msgspec.to_builtins(state(key, 1)) for key in "ab"], list[SessionState]))
    replica.message(set_message("c", 3))
    a, b, c = (replica.sessions[key] for key in "abc")

    assert a.overrides is b.overrides is c.overrides
    assert a.project is c.project
    [key] = [key for key in replica.sessions if key == "c"]
    assert key is c.session_key


def test_the_helper_tables_do_not_grow_with_the_number_of_changes(replica: Replica) -> None:
    make_live(replica)
    for rev in range(1, 10_001):
        session = msgspec.structs.replace(state("a", rev, expires_at=LATER + rev), scenario=f"scn_{rev}")
        if rev % 2:
            session = msgspec.structs.replace(session, scenario=None, overrides=(f"ovr_{rev}",))
        replica.message(encode(SessionSet(**header(rev), session=session)))

    assert where(replica) is State.LIVE
    assert len(replica._shared) < 1100
    assert len(replica._expiries) < 1100
    assert replica.next_expiry_ms == LATER + 10_000


# Held sessions


def test_a_pending_touch_does_not_count_when_sessions_are_compared(replica: Replica) -> None:
    make_live(replica, 1, state("a", 1))
    held = replica.sessions["a"]
    session = Session(
        **{name: getattr(held, name) for name in Session.__struct_fields__ if name != "effect"}, effect=None
    )

    held.set_touched_at(7.0)

    assert held.touched_at
    assert held == session
    assert session == held
    # A Struct's own comparison for != goes by identity.
    assert not operator.ne(held, session)
    assert not operator.ne(session, held)
    assert not operator.ne(session, msgspec.structs.replace(session))
    assert hash(held) == hash(session)
    assert held != msgspec.structs.replace(session, label="other")
    assert held != "a"
    with pytest.raises(AttributeError):
        held.label = "other"  # type: ignore[misc]


# With the scripts


@pytest.fixture
def store(shared_redis: RedisServer, prefix: str) -> Iterator[SessionStore]:
    with SessionStore.from_url(shared_redis.url, prefix=prefix) as store:
        yield store


def test_it_follows_a_real_redis(store: SessionStore, shared_redis: RedisServer, prefix: str) -> None:
    # Given more sessions than one step returns, one deleted
    staging = store.environment("checkout", "staging")
    for number in range(300):
        staging.put(f"ci-{number}", label=f"run {number}", overrides=["ovr_a"], wait=False)
    staging.delete("ci-7", wait=False)
    keys = EnvironmentKeyspace(prefix, "checkout", "staging")
    replica = Replica(keys)

    with shared_redis.client() as client, client.pubsub() as pubsub:
        pubsub.ssubscribe(keys.changes)
        assert pubsub.get_sharded_message(timeout=10) is not None
        replica.subscribed()

        # When others write between the steps of its sync, and after it
        steps = 0
        while (call := replica.poll()) is not None:
            reply: Any = client.eval(call.script.text, len(call.keys), *call.keys, *call.args)
            replica.answered(call, call.decode(reply))
            staging.put(f"new-{steps}", wait=False)
            staging.delete(f"ci-{100 + steps}", wait=False)
            steps += 1
        staging.activate("ci-1", "ovr_b", wait=False)
        while not reached(replica, 600, ""):
            message = pubsub.get_sharded_message(timeout=0.1)
            if message is None:
                break
            replica.message(message["data"])

        # Then it holds what Redis holds
        assert where(replica) is State.LIVE
        assert steps > 3
        assert set(replica.sessions) == {
            key for number in range(300) for key in [f"ci-{number}"] if number != 7 and not 100 <= number < 100 + steps
        } | {f"new-{number}" for number in range(steps)}
        assert all(staging.get(key) == replica.sessions[key] for key in ("ci-1", "ci-299", "new-0"))
