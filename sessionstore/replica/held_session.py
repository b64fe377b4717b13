"""A session as a replica holds it."""

from __future__ import annotations

from msgspec.structs import force_setattr, replace

from ..session import Session


class HeldSession(Session, frozen=True, kw_only=True, gc=False, eq=False):
    """A session in a replica.

    Attributes
    ----------
    touched_at : float
        Local time of the look-up that the next flush reports; 0.0 if none is pending. Two sessions that differ only
        here are equal.
    """

    touched_at: float = 0.0

    def set_touched_at(self, touched_at: float) -> None:
        """Set `touched_at`, the only field that changes on a held session."""
        force_setattr(self, "touched_at", touched_at)

    def __repr__(self) -> str:
        # Callers know it as a Session.
        return repr(Session(**{name: getattr(self, name) for name in Session.__struct_fields__}))


def moved(session: HeldSession, expires_at: int, last_seen_at: int) -> HeldSession:
    """The session with another expiry; it keeps its revision.

    It has no pending touch: a flush clears `touched_at` on the object that was looked up.
    """
    return replace(session, expires_at=expires_at, last_seen_at=last_seen_at, touched_at=0.0)
