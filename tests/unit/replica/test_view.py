"""A look-up while another thread brings the view up to date: what it reads first and what last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sessionstore.errors import StaleView
from sessionstore.replica.view import BaseView

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


@pytest.mark.parametrize("name", ["get", "peek"])
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


@pytest.mark.parametrize("touch_pending", [False, True])
def test_a_session_that_expires_during_its_look_up_is_not_returned(world: RacingWorld, touch_pending: bool) -> None:
    # Given a session that was read, and then time in which it ends
    if touch_pending:
        assert world.view.get("ci-42") is not None
    expires_at = world.sessions["ci-42"].expires_at

    def wait_for_the_end() -> None:
        world.advance((expires_at - world.server.now) / 1000)

    world.sessions.race = wait_for_the_end

    with pytest.raises(StaleView):
        world.view.get("ci-42")
