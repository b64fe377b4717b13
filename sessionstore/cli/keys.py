"""``sessionstore keys create | list | revoke``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from ..api_keys.model import DEFAULT_ACTIVE_KEYS, MAX_ACTIVE_KEYS, ApiKey
from ..api_keys.ring import REVOCATION_BOUND_S
from ..errors import InvalidFieldError
from ..session import format_time
from ..sync.store import SessionStore
from .options import JsonOption, on_store, seconds_of
from .output import print_json, print_result, say, time_of

app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
@on_store
def create(
    store: SessionStore,
    name: Annotated[str, typer.Argument(help="A note of the key's use.")],
    project: Annotated[
        str | None,
        typer.Option("--project", "-p", metavar="SLUG", help="Allow one project only; default: every project."),
    ] = None,
    expires_in: Annotated[
        Any, typer.Option(metavar="TIME", callback=seconds_of, help="Expires after this time: 90d, 12h, 30m …")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Expires at this time: 2030-01-31 or 2030-01-31T12:00:00Z.")
    ] = None,
    max_active: Annotated[
        int, typer.Option(metavar="N", help=f"Keys that may be active afterwards, up to {MAX_ACTIVE_KEYS}.")
    ] = DEFAULT_ACTIVE_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Create a key and print it, once. Standard output holds only the key."""
    expiry = _expiry(expires_in, expires_at)
    new = store.api_keys.create(name, project=project, expires_at=expiry, max_active=max_active)
    if as_json:
        print_json({**_document(new.key, "active"), "key": new.secret})
        return
    scope = f"project {new.key.project}" if new.key.project else "every project"
    until = time_of(new.key.expires_at) or "it is revoked"
    say(f"Key {new.key.id} ({name}) opens {scope} until {until}. Keep it; it is not stored and can't be shown again.")
    typer.echo(new.secret)


@app.command("list")
@on_store
def list_keys(
    store: SessionStore,
    every: Annotated[bool, typer.Option("--all", help="Expired and revoked keys too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the keys, oldest first. Secrets are not shown."""
    snapshot = store.api_keys.snapshot()
    keys = sorted(snapshot.keys.values(), key=lambda key: (key.created_at, key.id))
    listed = [(key, status) for key in keys if (status := key.status(snapshot.now)) == "active" or every]
    print_result(
        as_json,
        {"keys": [_document(key, status) for key, status in listed]},
        ("ID", "NAME", "PROJECT", "STATUS", "CREATED", "EXPIRES", "LAST USED"),
        ((key.id, key.name, key.project or "(every)", status, *_times(key)) for key, status in listed),
    )
    for key_id in snapshot.corrupt:
        say(
            f"The record of the key {key_id} is corrupt and opens nothing. Remove it: sessionstore keys revoke {key_id}"
        )


@app.command()
@on_store
def revoke(
    store: SessionStore,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that list shows; never the key itself.")],
    as_json: JsonOption = False,
) -> None:
    """Revoke a key permanently. Revoking it again is no error."""
    key = store.api_keys.revoke(key_id)
    if as_json:
        print_json(_document(key, "revoked"))
    else:
        bound = f"within {REVOCATION_BOUND_S:g} s; one that can't reach Redis, after its --key-grace"
        say(f"Revoked {key.id} ({key.name}). Every gateway refuses it {bound}.")


def _times(key: ApiKey) -> Iterable[str | None]:
    return map(time_of, (key.created_at, key.expires_at, key.last_used_at))


def _document(key: ApiKey, status: str) -> dict[str, Any]:
    """A key for JSON, with times as in the HTTP API."""
    document: dict[str, Any] = msgspec.to_builtins(key)
    times = {name: format_time(value) for name, value in document.items() if name.endswith("At") and value is not None}
    return {**document, **times, "status": status}


def _expiry(expires_in: float | None, expires_at: str | None) -> int | None:
    """When the key expires, in ms since 1970."""
    if expires_in is not None and expires_at is not None:
        raise InvalidFieldError("Give either --expires-in or --expires-at.")
    if expires_in is not None:
        return int(time.time() + expires_in) * 1000
    if expires_at is None:
        return None
    try:
        at = datetime.fromisoformat(expires_at)
    except ValueError as exc:
        raise InvalidFieldError("--expires-at takes a date or time as 2030-01-31 or 2030-01-31T12:00:00Z.") from exc
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
