"""What a proxy asks on every request: the session of a key, from local memory.

Both drivers' views are this class; they only differ in how they are opened and closed.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Literal, cast

from msgspec import Struct

from ..catalog.model import Catalog
from ..errors import InvalidInputError, StaleView, StoreClosedError, StoreUnavailableError
from ..options import check_seconds
from ..protocol.calls import WriteContext
from ..session import Session, normalize_session_key
from .held_session import HeldSession
from .subscriptions import Subscriptions

#: Told of each change after it is applied: session key, and the session or None where it is gone.
ChangeCallback = Callable[[str, Session | None], None]

OnStale = Literal["serve", "raise"]

#: Seconds that opening a view may take.
DEFAULT_OPEN_TIMEOUT_S = 10.0

_log = logging.getLogger("sessionstore.view")


class ViewStats(Struct, frozen=True):
    """The state of a view.

    Attributes
    ----------
    state : str
        ``empty``, ``syncing`` or ``live``.
    fresh : bool
        It holds a lease: no write returns before the view serves it.
    sessions : int
        Sessions held.
    revision : int
        The environment's revision that has been applied.
    resyncs : int
        How often it had to read everything again.
    lease_left_s : float
        Seconds until it stops being fresh, if nothing renews its lease.
    last_error : str or None
        Why it was last out of touch.
    """

    state: str
    fresh: bool
    sessions: int
    revision: int
    resyncs: int
    lease_left_s: float
    last_error: str | None


class BaseView:
    """A local copy of one environment's sessions, kept right in the background. Made by an environment's ``view()``.

    `get`, `peek`, `fresh` and `stats` never do I/O, and any thread may use them.

    Attributes
    ----------
    get : callable
        ``view.get(key)`` looks a session up and records that it was seen. `key` is the session key as the request's
        header has it; it need not be normalised. Returns the `Session`, never one that is past its expiry in Redis
        time, or None; None, an empty key and anything that is no text have no session. Raises `StaleView` where the
        view was opened with ``on_stale="raise"`` and holds no lease.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_clock",
        "_closed",
        "_context",
        "_fast_path",
        "_follower",
        "_on_stale",
        "_sessions",
        "_timeout_s",
        "_touch_interval_s",
        "_wait",
        "get",
    )

    get: Callable[[str | None], Session | None]

    def __init__(
        self, context: WriteContext, on_stale: OnStale, wait: bool, timeout_s: float, touch_interval_s: float
    ) -> None:
        if on_stale not in ("serve", "raise"):
            raise InvalidInputError('on_stale must be "serve" or "raise".')
        check_seconds("timeout_s", timeout_s, 0.0, 3600.0)
        check_seconds("touch_interval_s", touch_interval_s, 0.01, 3600.0)
        self._context = context
        self._on_stale = on_stale
        self._wait = wait
        self._timeout_s = timeout_s
        self._touch_interval_s = touch_interval_s
        #: why it can't be used, if it can't
        self._closed: str | None = "This view is not open; use it as a context manager, or call open() first."
        self.get = self._refuse

    def _begin(self, subscriptions: Subscriptions, clock: Callable[[], float], info: str) -> None:
        """Follow the environment, and answer look-ups from now on."""
        if self._closed is None:
            raise InvalidInputError("This view is open already; make another with view().")
        follower = subscriptions.follow(self._context, info, clock(), self._touch_interval_s)
        self._follower = follower
        self._sessions = follower.sessions
        self._clock = clock
        self._fast_path = follower.add_fast_path(strict=self._on_stale == "raise")
        self._callbacks: list[ChangeCallback] = []
        self._closed = None
        self.get = self._make_get()
        follower.watchers.append(self._notify)
        _open_views.add(self)

    def _make_get(self) -> Callable[[str | None], Session | None]:
        """Build `get`. A closure finds what it needs in a third of the time that attributes of self would take."""
        sessions = cast("dict[str | None, HeldSession]", self._sessions)
        clock = self._clock
        fast_path = self._fast_path
        touch = self._follower.touch
        look_up = self._look_up

        def get(key: str | None, /) -> Session | None:
            # In this order: valid_until is from before the session was read, so that what another thread brings up to
            # date in between is a change during the look-up; and the clock is from after it.
            try:
                until = fast_path.valid_until
                session = sessions[key]
                if until > clock():
                    if session.touch_pending:
                        return session
                    now = clock()
                    # It may have only just come, and expire sooner than what was there before.
                    if now < fast_path.valid_until:
                        touch(session.session_key, session, now)
                        return session
            except Exception:  # no such key, or nothing that can be one
                pass
            return look_up(key, touch=True)

        return get

    def peek(self, key: str | None) -> Session | None:
        """Look a session up as `get` does, without recording that it was seen."""
        return self._look_up(key, touch=False)

    @property
    def fresh(self) -> bool:
        """Whether no write can have returned that this view does not serve, as of now; False where it is not open.

        To have that for one look-up, open the view with ``on_stale="raise"``: between two calls, time passes.
        """
        return self._closed is None and self._clock() < self._follower.fresh_until

    @property
    def catalog(self) -> Catalog | None:
        """The environment's catalog, kept right like the sessions; None where it has none."""
        self._check_open()
        return self._follower.replica.catalog

    @property
    def stats(self) -> ViewStats:
        """How the view stands."""
        self._check_open()
        follower = self._follower
        left_s = max(0.0, follower.fresh_until - self._clock())
        return ViewStats(
            state=follower.replica.state.name.lower(),
            fresh=left_s > 0,
            sessions=len(self._sessions),
            revision=follower.replica.rev,
            resyncs=follower.replica.resyncs,
            lease_left_s=left_s,
            last_error=follower.last_error,
        )

    def subscribe(self, callback: ChangeCallback) -> Callable[[], None]:
        """Have `callback` told of each change after it is applied; what is returned ends that.

        It is called where the view is kept up to date (on the event loop, or on a background thread), and holds that
        up. So it must not block, nor use the store, nor open or close a view; look-ups are fine. What it raises is
        logged and has no other effect.
        """
        self._check_open()
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def _look_up(self, key: str | None, *, touch: bool) -> Session | None:
        """Look up with every check there is: key, lease, expiry."""
        self._check_open()
        if not isinstance(key, str):
            return None
        follower = self._follower
        # The lease is from before the session is read, as in `get`.
        fresh_until = follower.fresh_until
        session = self._sessions.get(key)
        if session is None:
            key = normalize_session_key(key)
            session = self._sessions.get(key)
        now = self._clock()
        if self._fast_path.strict and now >= fresh_until:
            self._check_open()
            raise StaleView(
                f"The view of {follower.name} can't prove that it is current "
                f"({follower.trouble or follower.last_error or 'it is not in touch yet'}); "
                "try again, or open it with on_stale='serve'."
            )
        if session is None or session.expires_at <= follower.redis_ms(now):
            return None
        if touch:
            follower.touch(key, session, now)
        return session

    def _check_open(self) -> None:
        if self._closed is not None:
            raise StoreClosedError(self._closed)
        if self._follower.closed:
            raise StoreClosedError("The store of this view is closed; open another.")

    def _refuse(self, key: str | None) -> Session | None:
        """Stand in for `get` before the view is opened."""
        raise StoreClosedError(self._closed)

    def _end(self, reason: str) -> None:
        """Have every further look-up raise StoreClosedError."""
        self._closed = reason
        self._follower.drop_fast_path(self._fast_path)
        self._follower.watchers.remove(self._notify)
        _open_views.discard(self)

    def _is_settled(self) -> bool:
        """Whether opening is over, in success or failure."""
        return self.fresh or self._follower.closed

    def _late(self) -> StoreUnavailableError:
        read = self._follower.replica.read_so_far
        reason = self._follower.trouble or (f"{read} sessions were read by then" if read else "Redis did not answer")
        return StoreUnavailableError(
            f"The view of {self._follower.name} was not in touch within {self._timeout_s:g} s ({reason}); "
            f"{'give it a longer timeout_s' if read else 'try again'}, or open it with wait=False."
        )

    def _notify(self, session_key: str, session: Session | None) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(session_key, session)
            except KeyboardInterrupt:
                raise
            except BaseException:
                # Also the CancelledError of a future that it asked: it would end what keeps the view right.
                _log.exception("A callback of view.subscribe failed; the view goes on.")


_open_views: weakref.WeakSet[BaseView] = weakref.WeakSet()


def _after_fork() -> None:
    """Nothing keeps a view right in a forked process, so it must not answer there."""
    for view in tuple(_open_views):
        view._end("This view was opened before a fork; open one in this process, after the fork.")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
