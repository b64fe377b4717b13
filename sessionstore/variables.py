"""The environment variables of the gateway, the command line and the client, and how people write a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from .errors import InvalidInputError

_PREFIX = "SESSIONSTORE_"

#: Every variable, without its prefix. Those of the client are here too: it may run beside the others.
KNOWN = (
    *("REDIS_URL", "PREFIX", "TTL", "LEASE", "PROJECT", "ENVIRONMENT", "API_KEY", "URL"),
    *("EMBEDDED", "EMBEDDED_SOCKET", "HOST", "PORT", "DEADLINE", "SHUTDOWN_GRACE", "RATE_LIMIT", "MAX_CONNECTIONS"),
    *("MAX_SESSIONS", "MAX_PROJECT_BYTES", "MAX_ENVIRONMENTS"),
    *("KEY_GRACE", "METRICS", "REPLICAS", "LOG_LEVEL", "ACCESS_LOG", "AUDIT_LOG"),
)

#: Kubernetes sets these in each container, for a Service whose name begins with "sessionstore".
_INJECTED_NAME = re.compile(r"_SERVICE_(HOST|PORT(_.*)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_.*)?$")
_INJECTED_PORT = re.compile(r"(tcp|udp|sctp)://")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TIME = re.compile(r"(\d{1,12}(?:\.\d{1,12})?) ?([smhdw]?)\Z", re.ASCII)


def read_variable(environ: Mapping[str, str], name: str) -> str | None:
    """Read the variable of a setting: ``REDIS_URL``. None if it is unset, empty, or injected by Kubernetes."""
    value = environ.get(_PREFIX + name)
    return value if value and not (name == "PORT" and _INJECTED_PORT.match(value)) else None


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Describe each variable that begins like ours and is none of ours, in a sentence that names the nearest one."""
    sentences = []
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(_PREFIX)
        if name == variable or name in KNOWN or _is_injected(variable, value):
            continue
        [near] = get_close_matches(name, KNOWN, n=1, cutoff=0.0)
        sentences.append(f"The variable {variable} is unknown and has no effect; did you mean {_PREFIX}{near}?")
    return sentences


def _is_injected(variable: str, value: str) -> bool:
    return bool(_INJECTED_NAME.search(variable) or (variable.endswith("_PORT") and _INJECTED_PORT.match(value)))


def parse_seconds(text: str, low: float = 0.0, high: float = float("inf")) -> float:
    """Read a time as people write it: ``90`` or ``90s``, ``30m``, ``12h``, ``1d``, ``2w``.

    Raises
    ------
    InvalidInputError
        It is no such time, or not between `low` and `high` seconds.
    """
    match = _TIME.match(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else -1.0
    if not low <= seconds <= high:
        bounds = "" if high == float("inf") else f" from {show_seconds(low)} to {show_seconds(high)}"
        raise InvalidInputError(f"must be a time{bounds}, such as 90s, 30m, 12h or 1d.")
    return seconds


def show_seconds(seconds: float) -> str:
    """Write a time as people do, in the largest unit that divides it: ``1d``, ``90s``."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _UNITS[unit] == 0), "s")
    return f"{seconds / _UNITS[unit]:.15g}{unit}"
