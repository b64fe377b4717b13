"""A view: it answers each request of a proxy with a session from local memory.

The views of both drivers derive from `BaseView`. They add how a view is opened and closed.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, Literal, cast

from msgspec import Struct
from msgspec.structs import force_setattr

from ..catalog.model import Catalog
from ..errors import InvalidInputError, StaleView, StoreClosedError, StoreUnavailableError
from ..options import check_seconds
from ..protocol.calls import WriteContext
from ..protocol.replies import corrupt_session
from ..session import Session, normalize_session_key, session_key_from_header
from .held_session import HeldSession
from .subscriptions import Subscriptions

#: Called with each change after it is applied: session key, and the session; None if it was deleted or has expired.
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
        Whether it holds a lease: no write returns before the view serves it.
    sessions : int
        Sessions held.
    revision : int
        The environment's revision that the view has applied.
    resyncs : int
        How often it has read everything again.
    lease_left_s : float
        Seconds until it stops being fresh, unless it renews its lease.
    last_error : str or None
        Why it last stopped being fresh.
    corrupt : int
        Sessions that it can't serve, because their records in Redis are corrupt.
    """

    state: str
    fresh: bool
    sessions: int
    revision: int
    resyncs: int
    lease_left_s: float
    last_error: str | None
    corrupt: int


class BaseView:
    """A local copy of one environment's sessions, kept up to date in the background. Made by `view` of an environment.

    `get`, `peek`, `fresh` and `stats` never do I/O, and any thread may use them.

    Attributes
    ----------
    get : callable
        ``view.get(key)`` looks up a session and records that it was seen. The session key need not be normalised.
        Returns the `Session`, or None. It never returns a session after its expiry in Redis time. A view that was
        opened with ``on_stale="raise"`` raises `StaleView` without a lease, and `CorruptSessionError` for a session
        whose record in Redis is corrupt; another view logs such a record, and returns None.
    get_by_header : callable
        ``view.get_by_header(raw)`` takes the raw value of the request's header instead: bytes, or a str as a framework
        decodes it, or None without the header. See `session_key_from_header`. Any value is safe.
    """

    get: Callable[[str | None], Session | None]
    get_by_header: Callable[[bytes | str | None], Session | None]

    def __init__(
        self,
        runner: Any,
        context: WriteContext,
        on_stale: OnStale,
        wait: bool,
        timeout_s: float,
        touch_interval_s: float,
    ) -> None:
        if on_stale not in ("serve", "raise"):
            raise InvalidInputError('on_stale must be "serve" or "raise".')
        check_seconds("timeout_s", timeout_s, 0.0, 3600.0)
        check_seconds("touch_interval_s", touch_interval_s, 0.01, 3600.0)
        self._runner = runner
        self._context = context
        self._on_stale = on_stale
        self._wait = wait
        self._timeout_s = timeout_s
        self._touch_interval_s = touch_interval_s
        #: why look-ups raise; None while it is open
        self._closed: str | None = "This view is not open; use it as a context manager, or call open() first."
        self.get = self.get_by_header = self._refuse

    def _begin(self, subscriptions: Subscriptions, clock: Callable[[], float], info: str) -> None:
        """Follow the environment and answer look-ups from now on."""
        if self._closed is None:
            raise InvalidInputError("This view is open already; make another with view().")
        follower = subscriptions.follow(self._context, info, clock(), self._touch_interval_s)
        self._follower = follower
        self._sessions = follower.sessions
        self._clock = clock
        self._fast_path = follower.add_fast_path(strict=self._on_stale == "raise")
        self._subscribed: list[Callable[[], None]] = []
        self._closed = None
        self.get = self._make_get()
        self.get_by_header = self._make_get_by_header(self.get)
        _open_views.add(self)

    def _make_get(self) -> Callable[[str | None], Session | None]:
        """Build `get`. A closure finds what it needs in a third of the time that attributes of self would take."""
        sessions = cast("dict[str | None, HeldSession]", self._sessions)
        clock = self._clock
        fast_path = self._fast_path
        touches = self._follower.touches
        look_up = self._look_up

        def get(key: str | None, /) -> Session | None:
            # The order matters. valid_until is read before the session, so that a change by another thread in between
            # counts as one during the look-up. The clock is read after the session.
            try:
                until = fast_path.valid_until
                session = sessions[key]
                if until > (now := clock()):
                    if session.touched_at:
                        return session
                    # The session may be new, and expire sooner than those before.
                    if now < fast_path.valid_until:
                        # As in Follower.touch.
                        force_setattr(session, "touched_at", now)
                        touches.append(session)
                        return session
            except Exception:  # no such key, or not a key at all
                pass
            return look_up(key, touch=True)

        return get

    def _make_get_by_header(
        self, get: Callable[[str | None], Session | None]
    ) -> Callable[[bytes | str | None], Session | None]:
        """Build `get_by_header`. Most headers are normal already: they are looked up as they are."""
        sessions = cast("dict[bytes | str | None, HeldSession]", self._sessions)
        clock = self._clock
        fast_path = self._fast_path

        def get_by_header(raw: bytes | str | None, /) -> Session | None:
            try:
                until = fast_path.valid_until
                key = raw.decode() if type(raw) is bytes else raw if raw.isascii() else None  # type: ignore[union-attr]
                session = sessions[key]
                if until > clock() and session.touched_at:
                    return session
            except Exception:  # no such key, or not a key at all
                pass
            return get(session_key_from_header(raw))

        return get_by_header

    def peek(self, key: str | None) -> Session | None:
        """Look up a session as `get` does, without recording that it was seen."""
        return self._look_up(key, touch=False)

    @property
    def fresh(self) -> bool:
        """Whether the view serves every write that has returned; false while it is not open.

        It may change before the next look-up. To check each look-up, open the view with ``on_stale="raise"``.
        """
        return self._closed is None and self._clock() < self._follower.fresh_until

    @property
    def catalog(self) -> Catalog | None:
        """The environment's catalog, kept up to date like the sessions; None without a catalog."""
        self._check_open()
        return self._follower.replica.catalog

    @property
    def stats(self) -> ViewStats:
        """The state of the view."""
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
            corrupt=len(follower.replica.corrupt),
        )

    def subscribe(self, callback: ChangeCallback) -> Callable[[], None]:
        """Call `callback` with each change after it is applied. Returns a function that ends the subscription.

        The callback runs on the event loop or on a background thread, and delays the next change. It may look up
        sessions. It must not block, use the store, or open or close a view. Its exceptions are logged and ignored.
        """
        self._check_open()
        watchers = self._follower.replica.watchers

        def watch(session_key: str, session: Session | None) -> None:
            try:
                callback(session_key, session)
            except KeyboardInterrupt:
                raise
            except BaseException:
                # This includes CancelledError of a future: it would end the task that keeps the view up to date.
                _log.exception("A callback of view.subscribe failed; the view goes on.")

        def unsubscribe() -> None:
            if unsubscribe in self._subscribed:
                self._subscribed.remove(unsubscribe)
                watchers.remove(watch)

        watchers.append(watch)
        self._subscribed.append(unsubscribe)
        return unsubscribe

    def _look_up(self, key: str | None, *, touch: bool) -> Session | None:
        """Look up with every check: key, lease, expiry."""
        self._check_open()
        if not isinstance(key, str):
            return None
        follower = self._follower
        # The lease is read before the session, as in `get`.
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
        if session is None and self._fast_path.strict and key in follower.replica.corrupt:
            raise corrupt_session(follower.keyspace, key)
        if session is None or session.expires_at <= follower.redis_ms(now):
            return None
        if touch:
            follower.touch(session, now)
        return session

    def _check_open(self) -> None:
        if self._closed is not None:
            raise StoreClosedError(self._closed)
        if self._follower.closed:
            raise StoreClosedError("The store of this view is closed; open another.")

    def _refuse(self, key: bytes | str | None) -> Session | None:
        """Stand in for `get` before the view is opened."""
        raise StoreClosedError(self._closed)

    def _end(self, reason: str) -> None:
        """Make every further look-up raise StoreClosedError."""
        self._closed = reason
        self._follower.drop_fast_path(self._fast_path)
        for unsubscribe in tuple(self._subscribed):
            unsubscribe()
        _open_views.discard(self)

    def _check_settled(self) -> None:
        """Check, when opening is over, that the view can serve what writes set."""
        self._check_open()
        error = self._follower.unregistered
        if error is not None:
            raise error

    def _is_settled(self) -> bool:
        """Whether opening has finished, successfully or not."""
        return self.fresh or self._follower.closed

    def _late(self) -> StoreUnavailableError:
        read = self._follower.replica.read_so_far
        reason = self._follower.trouble or (f"it had read {read} sessions by then" if read else "Redis did not answer")
        return StoreUnavailableError(
            f"The view of {self._follower.name} was not in touch within {self._timeout_s:g} s ({reason}); "
            f"{'give it a longer timeout_s' if read else 'try again'}, or open it with wait=False."
        )


_open_views: weakref.WeakSet[BaseView] = weakref.WeakSet()


def _after_fork() -> None:
    """Close the views in a forked process: nothing keeps them up to date there."""
    for view in tuple(_open_views):
        view._end("This view was opened before a fork; open one in this process, after the fork.")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
