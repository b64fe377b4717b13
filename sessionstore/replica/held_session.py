"""A session as a replica holds it."""

from __future__ import annotations

from msgspec.structs import astuple, force_setattr, replace

from ..session import Session


class HeldSession(Session, frozen=True, kw_only=True, gc=False, eq=False):
    """A session in a replica.

    Attributes
    ----------
    touch_pending : bool
        Whether a touch of this session waits for the next flush. It says nothing about the session: where all else is
        equal, so are the sessions.
    """

    touch_pending: bool = False

    def set_touch_pending(self, pending: bool) -> None:
        """Set `touch_pending`, the one thing that changes on a session."""
        force_setattr(self, "touch_pending", pending)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return astuple(self)[:_CONTENT] == astuple(other)[:_CONTENT]

    def __hash__(self) -> int:
        return hash(astuple(self)[:_CONTENT])

    def __repr__(self) -> str:
        # Callers know it as a Session.
        return repr(Session(**{name: getattr(self, name) for name in Session.__struct_fields__}))


#: The fields of a session, without `effect`, which is the last one, and `touch_pending`.
_CONTENT = len(Session.__struct_fields__) - 1


def moved(session: HeldSession, expires_at: int, last_seen_at: int) -> HeldSession:
    """The session with another expiry; it keeps its revision.

    `touch_pending` starts anew: the flush clears it only on sessions that are served, and this one may be served later.
    """
    return replace(session, expires_at=expires_at, last_seen_at=last_seen_at, touch_pending=False)
