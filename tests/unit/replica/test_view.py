"""A look-up while another thread brings the view up to date: what it reads first and what last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from msgspec.structs import replace

from sessionstore.errors import StaleView
from sessionstore.replica.view import BaseView
from sessionstore.session import session_key_from_header

from ...support.follower_world import LEASE_MS
from ...support.replica_world import KEYS
from .test_subscriptions import SubscriptionsWorld


class RacingDict(dict[str, Any]):
    """Does something else right after a session was read, once, as another thread may."""

    race: Callable[[], object] | None = None

    def __getitem__(self, key: str) -> Any:
        return self._then_race(super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._then_race(super().get(key, default))

    def _then_race(self, session: Any) -> Any:
        race, self.race = self.race, None
        if race is not None:
            race()
        return session


class RacingWorld(SubscriptionsWorld):
    """A strict view whose sessions are in a `RacingDict`, in touch and with one session."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = RacingDict()
        follow = self.subscriptions.follow

        def follow_racing(*args: Any) -> Any:
            follower = follow(*args)
            follower.replica.sessions = follower.sessions = self.sessions
            return follower

        self.subscriptions.follow = follow_racing  # type: ignore[method-assign, assignment]
        self.server = self.servers[KEYS.changes]
        self.server.put("ci-42", published=False)
        self.view = BaseView(None, self.contexts[KEYS.changes], "raise", False, 10.0, 60.0)
        self.view._begin(self.subscriptions, lambda: self.now, "{}")
        self.subscriptions.connected(self.now)
        self.confirm()
        self.run()
        assert self.view.fresh

    def miss_a_change(self) -> None:
        """Lose touch, and let Redis go on; what is regained later is another state."""
        self.subscriptions.disconnected("the connection to Redis broke", self.now)
        self.advance(LEASE_MS / 1000 + 1.0)
        self.run()
        assert not self.view.fresh
        self.server.put("ci-42", published=False)

    def regain_touch(self) -> None:
        self.subscriptions.connected(self.now)
        self.confirm()
        self.advance(1.0)
        self.run()
        assert self.view.fresh


@pytest.fixture
def world() -> RacingWorld:
    return RacingWorld()


#: Headers whose keys are in the view, and variations of them.
HEADERS = st.one_of(
    st.binary(max_size=30),
    st.tuples(
        st.sampled_from([b"", b" ", b"\r\n\t", "\u2028\u3000".encode(), b"\xa0"]),
        st.sampled_from(["ci-42", "grüße", "ü", "日本", "x" * 200]).flatmap(
            lambda key: st.sampled_from([key.encode(), key.encode("latin-1", "replace"), f"{key}{key}".encode()])
        ),
        st.sampled_from([b"", b" ", b"\n", b"\xff", "\u2029 ".encode()]),
    ).map(b"".join),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=HEADERS, kind=st.sampled_from(["bytes", "latin-1", "surrogateescape"]))
# As text, this header is the key of another session.
@example(raw="ü".encode(), kind="latin-1")
def test_a_look_up_by_header_finds_what_a_look_up_by_its_key_finds(world: RacingWorld, raw: bytes, kind: str) -> None:
    for key in ("grüße", "日本", "x" * 200, "ÿ", "Ã¼", "ü"):
        if key not in world.sessions:
            world.sessions[key] = replace(world.sessions["ci-42"], session_key=key, touched_at=1.0)
    header: bytes | str = raw
    if kind != "bytes":
        header = raw.decode("latin-1") if kind == "latin-1" else raw.decode(errors="surrogateescape")

    found = world.view.get_by_header(header)

    key_of_header = session_key_from_header(header)
    assert found is (None if key_of_header is None else world.sessions.get(key_of_header))
    # and again, after it was recorded as seen
    assert world.view.get_by_header(header) is found


@pytest.mark.parametrize("name", ["get", "peek", "get_by_header"])
def test_a_strict_view_returns_no_state_from_before_its_lease(world: RacingWorld, name: str) -> None:
    before = world.sessions["ci-42"]
    world.miss_a_change()
    # Given a look-up of a view that is not fresh, which becomes fresh right after the old state was read
    world.sessions.race = world.regain_touch

    look_up: Any = getattr(world.view, name)
    try:
        found = look_up("ci-42")
    except StaleView:
        found = None

    assert world.sessions["ci-42"] != before
    assert found != before


@pytest.mark.parametrize("name", ["get", "get_by_header"])
@pytest.mark.parametrize("touch_pending", [False, True])
def test_a_session_that_expires_during_its_look_up_is_not_returned(
    world: RacingWorld, touch_pending: bool, name: str
) -> None:
    # Given a session that was read, and then time in which it ends
    if touch_pending:
        assert world.view.get("ci-42") is not None
    expires_at = world.sessions["ci-42"].expires_at

    def wait_for_the_end() -> None:
        world.advance((expires_at - world.server.now) / 1000)

    world.sessions.race = wait_for_the_end

    with pytest.raises(StaleView):
        getattr(world.view, name)("ci-42")
