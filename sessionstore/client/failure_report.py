"""The report of a failed test: the section on its session. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import NotFoundError, SessionStoreError
from ..session import SESSION_HEADER, Effect, Session, SessionDetails, format_time

#: What two states of a session may differ in.
_PROPERTIES = ("scenario", "overrides", "global_delay_ms", "global_delay_max_ms", "label")


def describe(
    state: Session, effect: Effect, now: Session | SessionStoreError | None, elsewhere: Mapping[str, int] | None
) -> str:
    """Describe a session, one fact a line.

    Parameters
    ----------
    state : Session
        What the test has set.
    effect : Effect
        How its last write took effect.
    now : Session, SessionStoreError or None
        The session after the failure, or why it could not be read; None if the end of the test has deleted it.
    elsewhere : mapping or None
        How many live views other environments of the project have; None if that is not known.
    """
    place = f"{state.project}/{state.environment}"
    facts = [("session", f"{state.session_key} on {place}"), ("set", _shown(state)), *_now(state, now)]
    if effect.confirmed:
        facts.append(("confirmed", f"by {_count(effect.confirmed)}"))
    else:
        facts.append(("confirmed", f"by no view: no proxy on {place} serves this session"))
        facts.append(("elsewhere", name_others(elsewhere)))
    if effect.expired:
        facts.append(("expired", f"the lease of {_count(effect.expired)}: a proxy has died or hangs"))
    command = "watch" if effect.confirmed else "views"
    options = f"--project {state.project} --environment {state.environment}"
    facts.append(("more", f"sessionstore {command} {options}"))
    return "\n".join(f"{name + ':':<12}{text}" for name, text in facts)


def name_others(elsewhere: Mapping[str, int] | None) -> str:
    """Say which other environments have live views."""
    if elsewhere is None:
        return "Whether other environments have live views is not known."
    if not elsewhere:
        return "No other registered environment of the project has a live view."
    counts = ", ".join(f"{name} has {_count(count)}" for name, count in sorted(elsewhere.items()))
    return f"Other environments have live views: {counts}."


def _now(state: Session, now: Session | SessionStoreError | None) -> Iterator[tuple[str, str]]:
    if now is None:
        return
    if isinstance(now, NotFoundError):
        yield "now", "it does not exist: it expired, or another run has deleted it"
        return
    if isinstance(now, SessionStoreError):
        yield "now", f"not known: {now}"
        return
    if all(getattr(now, name) == getattr(state, name) for name in _PROPERTIES):
        yield "now", "as this test has set it"
    else:
        yield "now", f"{_shown(now)}; this test has not set that"
    details = now.details or SessionDetails()
    when = "at a time that is not known" if details.modified_at is None else format_time(details.modified_at)
    yield "last write", f"{when} by {details.modified_by or 'somebody unnamed'}, as {now.label!r}"
    if details.looked_up_at is None:
        yield "looked up", f"by no proxy: does a request reach it, and carry the header {SESSION_HEADER}?"
    else:
        yield "looked up", f"by a proxy, {format_time(details.looked_up_at)}"


def _shown(session: Session) -> str:
    delay = f"{session.global_delay_ms} ms"
    if session.global_delay_max_ms > session.global_delay_ms:
        delay = f"{session.global_delay_ms} to {session.global_delay_max_ms} ms"
    facts = [
        f"scenario {session.scenario}" if session.scenario else "no scenario",
        f"overrides {', '.join(session.overrides)}" if session.overrides else "no overrides",
        *([f"delay {delay}"] if session.global_delay_ms or session.global_delay_max_ms else []),
        *([f"label {session.label!r}"] if session.label else []),
    ]
    return "; ".join(facts)


def _count(views: int) -> str:
    return "1 view" if views == 1 else f"{views} views"
