"""The gateway's settings: command-line options, each with an environment variable.

An option wins over its variable; an empty variable counts as unset. The API key is a variable only, because everyone on
the machine can read a command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NoReturn, get_origin, get_type_hints

from msgspec import Struct

from sessionstore import options
from sessionstore.api_keys.model import is_secret
from sessionstore.errors import InvalidInputError
from sessionstore.protocol.calls import MAX_REPLICAS, REPLICAS_RULE
from sessionstore.protocol.keyspace import DEFAULT_PREFIX, validate_prefix
from sessionstore.transport.connect import check_url
from sessionstore.variables import parse_seconds, read_variable, show_seconds

from .auth import DEFAULT_GRACE_S, GRACE_RANGE_S
from .guard import DEFAULT_MAX_CONNECTIONS
from .limits import DEFAULT_LIMIT, Limit, parse_limit_setting

API_KEY_VARIABLE = "SESSIONSTORE_API_KEY"

#: How to make a key that opens every project.
MAKE_ONE = (
    f"To make one: export {API_KEY_VARIABLE}="
    """"$(python3 -c 'import secrets; print("fmk_" + secrets.token_urlsafe(32))')\""""
)

_LOG_LEVELS = ("debug", "info", "warning", "error")

_EPILOG = f"""\
environment variables:
  Each option can be given as SESSIONSTORE_<OPTION>, as in SESSIONSTORE_REDIS_URL
  or SESSIONSTORE_ACCESS_LOG=off. An option wins over its variable. A time is a
  number of seconds, or has a unit: 90s, 30m, 12h, 1d.

  {API_KEY_VARIABLE}
      a key that opens every project: fmk_ and 43 characters of base64url. It works
      even while Redis is away. Without it, make keys with sessionstore keys create
      before the gateway starts. To make one for this variable:
      python3 -c 'import secrets; print("fmk_" + secrets.token_urlsafe(32))'

examples:
  python -m gateway --embedded          a try, without Redis; prints a key and curl lines
  python -m gateway --redis-url redis://localhost:6379/0 --host 0.0.0.0

Stop it with SIGTERM or Ctrl+C: it finishes the requests in flight first.
"""


class UsageError(Exception):
    """An option or a variable is invalid. The message names it and its valid values."""


def _whole_number(low: int, high: int, rule: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
            raise ValueError(f"must be {rule}")
        return int(text)

    return convert


_replicas = _whole_number(0, MAX_REPLICAS, REPLICAS_RULE.removeprefix("must be "))
_port = _whole_number(0, 65535, "a port: 1 to 65535, or 0 for a free one")


def _metrics_place(text: str) -> Literal["on", "off"] | int:
    try:
        return "on" if text.lower() == "on" else "off" if text.lower() == "off" else _port(text)
    except ValueError:
        raise ValueError("must be on, off, or a port") from None


def _seconds(low: float, high: float) -> Callable[[str], float]:
    return partial(parse_seconds, low=low, high=high)


def _choice(choices: Mapping[str, Any], rule: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if text.lower() not in choices:
            raise ValueError(f"must be {rule}")
        return choices[text.lower()]

    return convert


_whole_quota = _whole_number(1, options.MAX_QUOTA, "a whole number from 1, or off")


def _quota(text: str) -> int | None:
    return None if text.lower() == "off" else _whole_quota(text)


_on_or_off = _choice({"on": True, "off": False, "1": True, "0": False, "true": True, "false": False}, "on or off")
_log_level = _choice({level: level for level in _LOG_LEVELS}, f"one of {', '.join(_LOG_LEVELS)}")


class _Option(Struct, frozen=True):
    """How a setting is given; its option and variable are named after its field, without the unit."""

    default: str | None
    convert: Callable[[str], Any]
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The gateway's settings; see ``python -m gateway --help``."""

    host: Annotated[str, _Option("127.0.0.1", str, "address to listen on; 0.0.0.0 for every interface")]
    port: Annotated[int, _Option("8080", _port, "port to listen on; 0 for a free one")]
    redis_url: Annotated[
        str | None,
        _Option(
            None,
            check_url,
            "redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://; with a password, use the variable",
        ),
    ]
    embedded: Annotated[
        bool, _Option("off", _on_or_off, "keep sessions in this process's memory instead; they are lost at its exit")
    ]
    embedded_socket: Annotated[
        bool,
        _Option("off", _on_or_off, "the same; and let proxies and commands of this user in, by a Unix socket"),
    ]
    prefix: Annotated[str, _Option(DEFAULT_PREFIX, validate_prefix, "in front of every key in Redis")]
    ttl_s: Annotated[
        float,
        _Option(
            show_seconds(options.DEFAULT_TTL_S),
            _seconds(1, options.TTL_RANGE_S[1]),
            "how long a session lives after it was last seen",
        ),
    ]
    lease_s: Annotated[
        float,
        _Option(
            show_seconds(options.DEFAULT_LEASE_S),
            _seconds(*options.LEASE_RANGE_S),
            "how long a view's lease lasts; all clients of one Redis need the same",
        ),
    ]
    deadline_s: Annotated[
        float,
        _Option(
            show_seconds(options.DEFAULT_DEADLINE_S),
            _seconds(*options.DEADLINE_RANGE_S),
            "how long one call of Redis may take before the client gets a 503",
        ),
    ]
    replicas: Annotated[
        int | None,
        _Option(
            None,
            _replicas,
            "replicas of Redis that must have a write before it is answered; a call's ?replicas= wins (default 0, or "
            "?replicas= of the URL)",
        ),
    ]
    shutdown_grace_s: Annotated[
        float, _Option("10s", _seconds(0, 3600), "how long requests in flight may take after SIGTERM")
    ]
    key_grace_s: Annotated[
        float,
        _Option(
            show_seconds(DEFAULT_GRACE_S),
            _seconds(*GRACE_RANGE_S),
            "how long loaded API keys stay valid while Redis can't be asked for them; a revocation may wait as long",
        ),
    ]
    rate_limit: Annotated[
        Limit | None,
        _Option(
            f"{DEFAULT_LIMIT.requests}/{DEFAULT_LIMIT.window_s}",
            parse_limit_setting,
            "requests/seconds of one key, over all gateways of one Redis; or off",
        ),
    ]
    max_connections: Annotated[
        int,
        _Option(
            str(DEFAULT_MAX_CONNECTIONS),
            _whole_number(1, 1_000_000, "a whole number from 1 to 1000000"),
            "client connections at the same time; a client over the limit gets a 503",
        ),
    ]
    max_sessions: Annotated[
        int | None, _Option("off", _quota, "quota: sessions of one environment; a write over a quota gets a 409")
    ]
    max_project_bytes: Annotated[
        int | None, _Option("off", _quota, "quota: bytes of one project's sessions; each takes 500 and its texts")
    ]
    max_environments: Annotated[
        int | None,
        _Option(
            str(options.DEFAULT_MAX_ENVIRONMENTS), _quota, "quota: environments of one project that have no catalog"
        ),
    ]
    metrics: Annotated[
        Literal["on", "off"] | int,
        _Option(
            "on",
            _metrics_place,
            "Prometheus metrics at /metrics, without a key: on (beside the API), off, or a port of their own",
        ),
    ]
    log_level: Annotated[str, _Option("info", _log_level, ", ".join(_LOG_LEVELS))]
    access_log: Annotated[bool, _Option("on", _on_or_off, "log one line for each request")]
    audit_log: Annotated[bool, _Option("off", _on_or_off, "log one line for each write, with its session key")]
    api_key: str | None


def parse_settings(arguments: Sequence[str], environ: Mapping[str, str], program: str) -> Settings:
    """Read the settings; `program` is how the help names it.

    Raises
    ------
    UsageError
        An option is unknown, or a value is invalid.
    SystemExit
        For ``--help``.
    """
    chosen = vars(_parser(program).parse_args(arguments))
    values: dict[str, Any] = {}
    for name, option in _options().items():
        variable = _shown(name).upper().replace("-", "_")
        value, source = chosen[name], f"--{_shown(name)}"
        if value is None:
            value, source = read_variable(environ, variable), f"SESSIONSTORE_{variable}"
        try:
            value = option.default if value is None else value
            values[name] = option.convert(value) if isinstance(value, str) else value
        except (InvalidInputError, ValueError) as exc:
            # Without the value: a URL may hold a password.
            raise UsageError(f"{source}: {exc}") from None
    _choose_store(values, chosen)
    api_key = environ.get(API_KEY_VARIABLE) or None
    if api_key is not None and not is_secret(api_key):
        raise UsageError(f"{API_KEY_VARIABLE} is not a key: it must be fmk_ and 43 characters of base64url. {MAKE_ONE}")
    return Settings(api_key=api_key, **values)


def _choose_store(values: dict[str, Any], chosen: Mapping[str, Any]) -> None:
    """Settle on Redis or the embedded store: in-memory state must be a choice, because it is lost."""
    embedded = values["embedded"] or values["embedded_socket"]
    if embedded and values["redis_url"] is not None:
        by_option = bool(chosen["embedded"] or chosen["embedded_socket"])
        if by_option is (chosen["redis_url"] is not None):
            raise UsageError("--embedded (or --embedded-socket) and --redis-url exclude each other; choose one.")
        # An option wins over the other's variable.
        if by_option:
            values["redis_url"] = None
        else:
            values["embedded"] = values["embedded_socket"] = False
    elif not embedded and values["redis_url"] is None:
        raise UsageError(
            "Name a Redis with --redis-url or SESSIONSTORE_REDIS_URL, or choose --embedded, which keeps sessions in "
            "memory only."
        )
    if values["redis_url"] is None and values["replicas"]:
        raise UsageError("--replicas asks for replicas, and --embedded has none; leave one of the two out.")


def _options() -> dict[str, _Option]:
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


def _shown(name: str) -> str:
    return name.removesuffix("_s").replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description="Set, read and tear down the mock state of test sessions over HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, option in _options().items():
        described = option.help + (f" (default {option.default})" if option.default else "")
        if option.convert is _on_or_off:
            parser.add_argument(f"--{_shown(name)}", action=argparse.BooleanOptionalAction, help=described)
        else:
            metavar = "TIME" if name.endswith("_s") else name.upper()
            parser.add_argument(f"--{_shown(name)}", dest=name, metavar=metavar, help=described)
    return parser
