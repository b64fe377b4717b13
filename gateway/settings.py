"""The gateway's settings: options of the command line, each also an environment variable.

An option wins over its variable, and a variable that is empty counts as not set. The API key is a variable only: what
is on a command line can be read by everybody on the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from sessionstore.api_keys.model import is_secret
from sessionstore.errors import InvalidInputError
from sessionstore.options import (
    DEADLINE_RANGE_S,
    DEFAULT_DEADLINE_S,
    DEFAULT_LEASE_S,
    DEFAULT_TTL_S,
    LEASE_RANGE_S,
    TTL_RANGE_S,
)
from sessionstore.protocol.keyspace import DEFAULT_PREFIX, validate_prefix
from sessionstore.transport.connect import check_url

from .limits import DEFAULT_LIMIT, Limit, parse_limit_setting

__all__ = ["API_KEY_VARIABLE", "MAKE_ONE", "MetricsPlace", "Settings", "UsageError", "parse_settings"]

API_KEY_VARIABLE = "SESSIONSTORE_API_KEY"

_LOG_LEVELS = ("debug", "info", "warning", "error")

_EPILOG = f"""\
environment variables:
  Each option can be given as SESSIONSTORE_<OPTION>, as in SESSIONSTORE_REDIS_URL;
  SESSIONSTORE_ACCESS_LOG is on or off. An option wins over its variable.

  {API_KEY_VARIABLE}
      a key that opens every project: fmk_ and 43 characters of base64url. It works
      even while Redis is away. Without it, make keys with sessionstore keys create,
      before the gateway starts. To make one for this variable:
      python3 -c 'import secrets; print("fmk_" + secrets.token_urlsafe(32))'

examples:
  python -m gateway                     a try, without Redis; prints a key and curl lines
  python -m gateway --redis-url redis://localhost:6379/0 --host 0.0.0.0

Stop it with SIGTERM or Ctrl+C: requests in flight are finished first.
"""


@dataclass(frozen=True, slots=True)
class MetricsPlace:
    """Where ``/metrics`` is: nowhere, beside the API, or on a port of its own."""

    on: bool
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway runs with; see ``python -m gateway --help``."""

    host: str
    port: int
    redis_url: str | None
    prefix: str
    ttl_s: float
    lease_s: float
    deadline_s: float
    shutdown_grace_s: float
    log_level: str
    rate_limit: Limit | None
    access_log: bool
    metrics: MetricsPlace
    api_key: str | None


class UsageError(Exception):
    """An option or a variable can't be used; the message says which, and what it takes."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@dataclass(frozen=True, slots=True)
class _Option:
    #: the field of `Settings`
    field: str
    #: as on the command line, without dashes
    name: str
    metavar: str
    default: str | None
    convert: Callable[[str], Any]
    help: str

    @property
    def variable(self) -> str:
        return "SESSIONSTORE_" + self.name.upper().replace("-", "_")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError("must be a port: 1 to 65535, or 0 for a free one")
    return int(text)


def _metrics_place(text: str) -> MetricsPlace:
    if text.lower() in ("on", "off"):
        return MetricsPlace(text.lower() == "on")
    try:
        return MetricsPlace(True, _port(text))
    except ValueError:
        raise ValueError("must be on, off, or a port") from None


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not low <= value <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return value

    return convert


def _on_or_off(text: str) -> bool:
    values = {"on": True, "off": False, "1": True, "0": False, "true": True, "false": False}
    if text.lower() not in values:
        raise ValueError("must be on or off")
    return values[text.lower()]


def _log_level(text: str) -> str:
    if text.lower() not in _LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(_LOG_LEVELS)}")
    return text.lower()


_OPTIONS = (
    _Option("host", "host", "ADDRESS", "127.0.0.1", str, "address to listen on; 0.0.0.0 for every interface"),
    _Option("port", "port", "PORT", "8080", _port, "port to listen on; 0 for a free one"),
    _Option(
        "redis_url",
        "redis-url",
        "URL",
        None,
        check_url,
        "redis://, rediss:// or unix://, with password and database; better given as the variable where it holds a "
        "password. Without one, sessions live in this process's memory",
    ),
    _Option("prefix", "prefix", "TEXT", DEFAULT_PREFIX, validate_prefix, "in front of every key in Redis"),
    _Option(
        "ttl_s",
        "ttl",
        "SECONDS",
        f"{DEFAULT_TTL_S:.0f}",
        _seconds(1, TTL_RANGE_S[1]),
        "how long a session lives after it was last seen",
    ),
    _Option(
        "lease_s",
        "lease",
        "SECONDS",
        f"{DEFAULT_LEASE_S:g}",
        _seconds(*LEASE_RANGE_S),
        "how long a view's lease lasts; all that share a Redis need the same",
    ),
    _Option(
        "deadline_s",
        "deadline",
        "SECONDS",
        f"{DEFAULT_DEADLINE_S:g}",
        _seconds(*DEADLINE_RANGE_S),
        "how long one call of Redis may take before it is answered with 503",
    ),
    _Option(
        "shutdown_grace_s",
        "shutdown-grace",
        "SECONDS",
        "10",
        _seconds(0, 3600),
        "how long requests in flight may take after SIGTERM before they are cut off",
    ),
    _Option(
        "rate_limit",
        "rate-limit",
        "N/SECONDS",
        f"{DEFAULT_LIMIT.requests}/{DEFAULT_LIMIT.window_s}",
        parse_limit_setting,
        "requests of one key, over all gateways of one Redis; or off",
    ),
    _Option(
        "metrics",
        "metrics",
        "on|off|PORT",
        "on",
        _metrics_place,
        "Prometheus metrics at /metrics, without a key: beside the API, or on a port of their own",
    ),
    _Option("log_level", "log-level", "LEVEL", "info", _log_level, f"{', '.join(_LOG_LEVELS)}"),
)

_ACCESS_LOG = _Option("access_log", "access-log", "", "on", _on_or_off, "log one line for each request")


def parse_settings(arguments: Sequence[str], environ: Mapping[str, str], program: str) -> Settings:
    """Read the settings; `program` is how the help names it.

    Raises
    ------
    UsageError
        An unknown option, or a value that can't be used.
    SystemExit
        For ``--help``.
    """
    chosen = vars(_parser(program).parse_args(arguments))
    values: dict[str, Any] = {}
    for option in (*_OPTIONS, _ACCESS_LOG):
        given = chosen[option.field]
        source = f"--{option.name}"
        if given is None and environ.get(option.variable):
            given, source = environ[option.variable], option.variable
        try:
            text = option.default if given is None else given
            values[option.field] = None if text is None else option.convert(text)
        except (InvalidInputError, ValueError) as exc:
            # The value itself is not shown: a URL may hold a password.
            raise UsageError(f"{source}: {exc}") from None
    api_key = environ.get(API_KEY_VARIABLE) or None
    if api_key is not None and not is_secret(api_key):
        raise UsageError(f"{API_KEY_VARIABLE} is not a key: it must be fmk_ and 43 characters of base64url. {MAKE_ONE}")
    settings = Settings(api_key=api_key, **values)
    assert len(values) + 1 == len(fields(settings))
    return settings


#: How to make a key that opens every project.
MAKE_ONE = (
    f"To make one: export {API_KEY_VARIABLE}="
    """"$(python3 -c 'import secrets; print("fmk_" + secrets.token_urlsafe(32))')\""""
)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description="Set, read and tear down the mock state of test sessions over HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in _OPTIONS:
        default = f" (default {option.default})" if option.default else ""
        parser.add_argument(
            f"--{option.name}", dest=option.field, metavar=option.metavar, default=None, help=option.help + default
        )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--access-log", dest="access_log", action="store_const", const="on", help=f"{_ACCESS_LOG.help} (default)"
    )
    group.add_argument("--no-access-log", dest="access_log", action="store_const", const="off", help="do not")
    return parser
