"""``sessionstore get | put | on | off | reset | delete | list``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import msgspec
import typer
from msgspec import UNSET

from ..errors import InvalidInputError, OutcomeUnknownError, SessionNotFoundError, StoreUnavailableError
from ..session import BulkResult, Session, SessionDetails
from ..sync.environment import Environment
from .options import (
    IfMatchOption,
    JsonOption,
    PrefixOption,
    SessionKeyArgument,
    Write,
    on_environment,
    on_write,
    seconds_of,
)
from .output import delay_of, effect_document, print_json, print_result, say, time_of


@on_environment
def get(environment: Environment, session_key: SessionKeyArgument, as_json: JsonOption = False) -> None:
    """Show a session, without extending its life."""
    session = environment.get(session_key)
    if session is None:
        raise SessionNotFoundError(
            f"There is no session {session_key!r} on {environment.project}/{environment.name}; put creates it."
        )
    _print_session(session, as_json)


@on_write
def put(
    write: Write,
    session_key: SessionKeyArgument,
    scenario: Annotated[str | None, typer.Option(metavar="ID", help="Set the scenario, scn_….")] = None,
    clear_scenario: Annotated[bool, typer.Option("--clear-scenario", help="Clear the scenario.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Replace the overrides by this one, ovr_…; repeat the option for several."),
    ] = None,
    no_overrides: Annotated[bool, typer.Option("--no-overrides", help="Clear the overrides.")] = False,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="Set the note for people.")] = None,
    clear_label: Annotated[bool, typer.Option("--clear-label", help="Clear the label.")] = False,
    global_delay_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="Delay every response; 0: no delay.")
    ] = None,
    global_delay_max_ms: Annotated[
        int | None,
        typer.Option(
            metavar="MS",
            help="Draw the delay between --global-delay-ms and this. A smaller value than that has no effect.",
        ),
    ] = None,
    ttl: Annotated[
        Any,
        typer.Option(
            metavar="TIME", callback=seconds_of, help="How long this session lives after its last use, from 60s up."
        ),
    ] = None,
    clear_ttl: Annotated[bool, typer.Option("--clear-ttl", help="Let it live as long as any session.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Clear unnamed properties.")] = False,
    if_match: IfMatchOption = None,
    create: Annotated[bool, typer.Option("--create", help="Only if the session does not exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Set a session's state.

    It applies all changes or none. Unnamed properties stay, unless --replace. A missing session is created.
    """
    session = write.environment.put(
        session_key,
        scenario=_chosen(scenario, "--scenario", clear_scenario, "--clear-scenario", None),
        overrides=_chosen(override or None, "--override", no_overrides, "--no-overrides", ()),
        label=_chosen(label, "--label", clear_label, "--clear-label", None),
        global_delay_ms=_chosen(global_delay_ms),
        global_delay_max_ms=_chosen(global_delay_max_ms),
        ttl_seconds=_chosen(_whole(ttl), "--ttl", clear_ttl, "--clear-ttl", None),
        replace=replace,
        if_match=if_match,
        if_none_match="*" if create else None,
        **write.terms,
    )
    _print_session(session, as_json)


SessionKeyOrNone = Annotated[
    str | None, typer.Argument(metavar="SESSION_KEY", help="The session's key, such as ci-42.")
]
OverrideArgument = Annotated[str, typer.Argument(metavar="MOCK", help="The published mock, ovr_….")]


@on_write
def on(
    write: Write,
    session_key: SessionKeyArgument,
    override: OverrideArgument,
    as_json: JsonOption = False,
) -> None:
    """Switch one mock on; the others stay. A missing session is created."""
    _print_session(write.environment.activate(session_key, override, **write.terms), as_json)


@on_write
def off(
    write: Write,
    session_key: SessionKeyArgument,
    override: OverrideArgument,
    as_json: JsonOption = False,
) -> None:
    """Switch one mock off; the others stay."""
    _print_session(write.environment.deactivate(session_key, override, **write.terms), as_json)


@on_write
def reset(
    write: Write,
    session_key: SessionKeyOrNone = None,
    prefix: PrefixOption = None,
    if_match: IfMatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Clear every property that put can set, and keep the session; or the sessions, with --prefix."""
    if prefix is not None:
        _check_alone(session_key, if_match)
        _change_all(partial(write.environment.reset_prefix, prefix, **write.terms), "Reset", as_json)
        return
    _print_session(write.environment.reset(_named(session_key), if_match=if_match, **write.terms), as_json)


@on_write
def delete(
    write: Write,
    session_key: SessionKeyOrNone = None,
    prefix: PrefixOption = None,
    if_match: IfMatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a session, or the sessions with --prefix. It is no error if none exists."""
    if prefix is not None:
        _check_alone(session_key, if_match)
        _change_all(partial(write.environment.delete_prefix, prefix, **write.terms), "Deleted", as_json)
        return
    deletion = write.environment.delete(_named(session_key), if_match=if_match, **write.terms)
    if as_json:
        print_json({"existed": deletion.existed, "effect": effect_document(deletion.effect)})
    else:
        say(f"Deleted {session_key!r}." if deletion else f"There was no session {session_key!r}.")


@on_environment
def list_sessions(
    environment: Environment,
    limit: Annotated[int, typer.Option(metavar="N", help="Sessions of one page, 1 to 100.")] = 50,
    cursor: Annotated[str | None, typer.Option(metavar="TEXT", help="nextCursor of the previous page.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the live sessions, last used first."""
    page = environment.list(limit, cursor, prefix)
    sessions, corrupt = list(page.sessions), list(page.corrupt)
    while every and page.next_cursor:
        page = environment.list(limit, page.next_cursor, prefix)
        sessions += page.sessions
        corrupt += page.corrupt
    print_result(
        as_json,
        {"sessions": [_document(session) for session in sessions], "nextCursor": page.next_cursor},
        ("SESSION", "SCENARIO", "OVERRIDES", "DELAY MS", "LAST SEEN", "LABEL"),
        ((s.session_key, s.scenario, s.overrides, delay_of(s), time_of(s.last_seen_at), s.label) for s in sessions),
    )
    for session_key in corrupt:
        say(f"The record of {session_key!r} is corrupt in Redis; sessionstore delete removes it.")
    if page.next_cursor and not as_json:
        say(f"There are more: --cursor {page.next_cursor}, or --all.")


def _named(session_key: str | None) -> str:
    if session_key is None:
        raise InvalidInputError("Name a session, or several with --prefix.")
    return session_key


def _check_alone(session_key: str | None, if_match: Any) -> None:
    if session_key is not None or if_match is not None:
        raise InvalidInputError("--prefix goes with neither a session key nor --if-match.")


def _change_all(change: Callable[[], BulkResult], done: str, as_json: bool) -> None:
    """Repeat a call on a prefix until it has changed all sessions."""
    count, more = 0, True
    while more:
        try:
            result = change()
        except StoreUnavailableError as exc:
            if not count:
                raise
            raise OutcomeUnknownError(f"{exc} {done} {count} sessions before; give the command again.") from exc
        count += result.count
        more = result.more
    if as_json:
        print_json({"count": count, "effect": effect_document(result.effect)})
    else:
        say(f"{done} {count} {'session' if count == 1 else 'sessions'}.")


def _chosen(value: Any, option: str = "", cleared: bool = False, clear_option: str = "", empty: Any = UNSET) -> Any:
    """Combine the option that sets a property with the option that clears it."""
    if value is not None and cleared:
        raise InvalidInputError(f"Give either {option} or {clear_option}.")
    return empty if cleared else UNSET if value is None else value


def _whole(seconds: float | None) -> float | int | None:
    """Seconds as the whole number that the library takes, which rejects any other."""
    return int(seconds) if seconds is not None and seconds.is_integer() else seconds


def _document(session: Session) -> dict[str, Any]:
    """A session as in a list of the HTTP API, with its own TTL, and after a write with its effect."""
    document: dict[str, Any] = msgspec.to_builtins(session.entry())
    document["ttlSeconds"] = _details(session).ttl_seconds
    if session.effect is not None:
        document["effect"] = effect_document(session.effect)
    return document


def _details(session: Session) -> SessionDetails:
    assert session.details is not None, "only views leave them out"
    return session.details


def _print_session(session: Session, as_json: bool) -> None:
    details = _details(session)
    print_result(
        as_json,
        _document(session),
        ("SESSION", session.session_key),
        (
            ("Project", session.project),
            ("Environment", session.environment),
            ("Label", session.label),
            ("Scenario", session.scenario),
            ("Overrides", session.overrides),
            ("Delay ms", delay_of(session)),
            ("Last seen", time_of(session.last_seen_at)),
            ("Expires", time_of(session.expires_at)),
            ("TTL s", details.ttl_seconds),
            ("Revision", session.revision),
            ("Modified", time_of(details.modified_at)),
            ("Modified by", details.modified_by),
            ("Looked up", time_of(details.looked_up_at)),
        ),
    )
    if session.effect is not None and session.effect.expired and not as_json:
        say(f"{session.effect.expired} of the live views did not confirm the change and lost their lease.")
