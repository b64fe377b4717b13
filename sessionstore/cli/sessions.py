"""``sessionstore get | put | reset | delete | list | views``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer
from msgspec import UNSET

from ..errors import InvalidInputError, SessionNotFoundError
from ..options import DEFAULT_LEASE_S, DEFAULT_TTL_S
from ..protocol.keyspace import DEFAULT_PREFIX
from ..session import Session
from .options import (
    EnvironmentOption,
    IfMatchOption,
    JsonOption,
    LeaseOption,
    NoWaitOption,
    PrefixOption,
    ProjectOption,
    RedisUrlOption,
    SessionKeyArgument,
    TtlOption,
    chosen_environment,
    if_match_of,
    opened,
)
from .output import effect_document, print_json, print_table, say, time_of


def get(
    session_key: SessionKeyArgument,
    project: ProjectOption,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Show one session. It does not count as seen."""
    with opened(redis_url, prefix) as store:
        chosen = chosen_environment(store, project, environment)
        session = chosen.get(session_key)
    if session is None:
        raise SessionNotFoundError(
            f"There is no session {session_key!r} on {chosen.project}/{chosen.name}; put creates it."
        )
    _print_session(session, as_json)


def put(
    session_key: SessionKeyArgument,
    project: ProjectOption,
    environment: EnvironmentOption = None,
    scenario: Annotated[str | None, typer.Option(metavar="ID", help="Set the scenario, scn_….")] = None,
    clear_scenario: Annotated[bool, typer.Option("--clear-scenario", help="Have no scenario.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Have exactly these overrides, ovr_…; give it once for each."),
    ] = None,
    no_overrides: Annotated[bool, typer.Option("--no-overrides", help="Have no override.")] = False,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="Set the note for people.")] = None,
    clear_label: Annotated[bool, typer.Option("--clear-label", help="Have no label.")] = False,
    global_delay_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="Delay every response by this; 0: not at all.")
    ] = None,
    global_delay_max_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="Draw the delay from --global-delay-ms to this; 0: do not.")
    ] = None,
    if_match: IfMatchOption = None,
    create: Annotated[bool, typer.Option("--create", help="Only if the session does not exist.")] = False,
    no_wait: NoWaitOption = False,
    ttl: TtlOption = DEFAULT_TTL_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Set a session's state.

    All of it or nothing; what is not named stays as it is. The session is created where it is missing.
    """
    if_none_match: Literal["*"] | None = "*" if create else None
    changes: dict[str, Any] = {
        "scenario": _chosen("scenario", scenario, clear_scenario, None),
        "overrides": _chosen("override", override or None, no_overrides, (), "--no-overrides"),
        "label": _chosen("label", label, clear_label, None),
        "global_delay_ms": UNSET if global_delay_ms is None else global_delay_ms,
        "global_delay_max_ms": UNSET if global_delay_max_ms is None else global_delay_max_ms,
    }
    with opened(redis_url, prefix, lease_s=lease, ttl_s=ttl) as store:
        session = chosen_environment(store, project, environment).put(
            session_key, **changes, if_match=if_match_of(if_match), if_none_match=if_none_match, wait=not no_wait
        )
    _print_session(session, as_json)


def reset(
    session_key: SessionKeyArgument,
    project: ProjectOption,
    environment: EnvironmentOption = None,
    if_match: IfMatchOption = None,
    no_wait: NoWaitOption = False,
    ttl: TtlOption = DEFAULT_TTL_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Clear everything that put can set, and keep the session."""
    with opened(redis_url, prefix, lease_s=lease, ttl_s=ttl) as store:
        session = chosen_environment(store, project, environment).reset(
            session_key, if_match=if_match_of(if_match), wait=not no_wait
        )
    _print_session(session, as_json)


def delete(
    session_key: SessionKeyArgument,
    project: ProjectOption,
    environment: EnvironmentOption = None,
    if_match: IfMatchOption = None,
    no_wait: NoWaitOption = False,
    lease: LeaseOption = DEFAULT_LEASE_S,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """Remove a session; fine where there is none."""
    with opened(redis_url, prefix, lease_s=lease) as store:
        deletion = chosen_environment(store, project, environment).delete(
            session_key, if_match=if_match_of(if_match), wait=not no_wait
        )
    if as_json:
        print_json({"existed": deletion.existed, "effect": effect_document(deletion.effect)})
    else:
        say(f"Deleted {session_key!r}." if deletion else f"There was no session {session_key!r}.")


def list_sessions(
    project: ProjectOption,
    environment: EnvironmentOption = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Sessions of one page, 1 to 100.")] = 50,
    cursor: Annotated[str | None, typer.Option(metavar="TEXT", help="nextCursor of the page before.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All pages, one after another.")] = False,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """List the live sessions, newest seen first."""
    sessions: list[Session] = []
    with opened(redis_url, prefix) as store:
        chosen = chosen_environment(store, project, environment)
        while True:
            page = chosen.list(limit, cursor)
            sessions += page.sessions
            cursor = page.next_cursor
            if cursor is None or not every:
                break
    if as_json:
        print_json({"sessions": [_document(session) for session in sessions], "nextCursor": cursor})
        return
    print_table(
        ("SESSION", "SCENARIO", "OVERRIDES", "DELAY MS", "LAST SEEN", "LABEL"),
        ((s.session_key, s.scenario, s.overrides, _delay(s), time_of(s.last_seen_at), s.label) for s in sessions),
    )
    if cursor is not None:
        say(f"There are more: --cursor {cursor}, or --all.")


def views(
    project: ProjectOption,
    environment: EnvironmentOption = None,
    as_json: JsonOption = False,
    redis_url: RedisUrlOption = None,
    prefix: PrefixOption = DEFAULT_PREFIX,
) -> None:
    """List the live views of an environment: the proxies that a write waits for."""
    with opened(redis_url, prefix) as store:
        found = chosen_environment(store, project, environment).views()
    if as_json:
        print_json({"views": [msgspec.to_builtins(view) for view in found]})
        return
    print_table(
        ("VIEW", "HOST", "PID", "VERSION", "REVISION", "LAG", "LEASE LEFT MS"),
        ((v.id, v.host, v.pid, v.version, v.applied_revision, v.lag, v.lease_left_ms) for v in found),
    )


def _chosen(name: str, value: Any, cleared: bool, empty: Any, clear_option: str = "") -> Any:
    """Combine the option that sets a property with the option that clears it."""
    if value is not None and cleared:
        raise InvalidInputError(f"Give either --{name} or {clear_option or f'--clear-{name}'}.")
    if cleared:
        return empty
    return UNSET if value is None else value


def _document(session: Session) -> dict[str, Any]:
    """A session as the HTTP API shows it, and what else the library knows."""
    document: dict[str, Any] = msgspec.to_builtins(session.document())
    document["revision"] = session.revision
    if session.effect is not None:
        document["effect"] = effect_document(session.effect)
    return document


def _print_session(session: Session, as_json: bool) -> None:
    if as_json:
        print_json(_document(session))
        return
    print_table(
        ("SESSION", session.session_key),
        (
            ("Project", session.project),
            ("Environment", session.environment),
            ("Label", session.label),
            ("Scenario", session.scenario),
            ("Overrides", session.overrides),
            ("Delay ms", _delay(session)),
            ("Last seen", time_of(session.last_seen_at)),
            ("Expires", time_of(session.expires_at)),
            ("Revision", session.revision),
        ),
    )
    effect = session.effect
    if effect is not None and effect.expired:
        say(f"{effect.expired} of the live views did not confirm the change and lost their lease.")


def _delay(session: Session) -> str:
    if session.global_delay_max_ms > session.global_delay_ms:
        return f"{session.global_delay_ms}-{session.global_delay_max_ms}"
    return str(session.global_delay_ms)
