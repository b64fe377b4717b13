"""A session as a replica holds it."""

from __future__ import annotations

from msgspec.structs import force_setattr, replace

from ..session import Session


class HeldSession(Session, frozen=True, kw_only=True, gc=False, eq=False):
    """A session in a replica.

    Attributes
    ----------
    touch_pending : bool
        Whether the next flush touches this session. Two sessions that differ only here are equal.
    """

    touch_pending: bool = False

    def set_touch_pending(self, pending: bool) -> None:
        """Set `touch_pending`, the only field that changes on a held session."""
        force_setattr(self, "touch_pending", pending)

    def __repr__(self) -> str:
        # Callers know it as a Session.
        return repr(Session(**{name: getattr(self, name) for name in Session.__struct_fields__}))


def moved(session: HeldSession, expires_at: int, last_seen_at: int) -> HeldSession:
    """The session with another expiry; it keeps its revision.

    `touch_pending` starts as false: a flush clears it only on sessions that are served, and this one may come later.
    """
    return replace(session, expires_at=expires_at, last_seen_at=last_seen_at, touch_pending=False)
