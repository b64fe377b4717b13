"""Where the primary of a hash tag is, as far as it is known without asking.

A store uses one Redis at a fixed address, a cluster, or the primary that sentinels name. In the last two, a primary may
move at any time. Each new connection asks where to go (`transport.locator`), and its server must say that it is a
primary. Some errors mean that a call has not run, since its server can't serve it now or any more: see `is_misrouted`.

A cluster has a `Place` for each hash tag. A `Place` remembers whether the last answer is in doubt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import redis.exceptions as redis_errors

Address = tuple[str, int]

#: Seconds of the longest pause before a call is tried again. A call's deadline is the other bound.
LONGEST_PAUSE_S = 0.25

#: Where to look, but not whether a call has run: the call is tried again at the same place.
_WAITS = (redis_errors.AskError, redis_errors.TryAgainError)
_MISROUTED = (
    *_WAITS,
    redis_errors.BusyLoadingError,
    redis_errors.ClusterDownError,
    redis_errors.MovedError,
    redis_errors.ReadOnlyError,
)
_ROLE = re.compile(r"^role:(\w+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Redis Cluster: some of its nodes, and how to reach an address that a node announces."""

    nodes: tuple[Address, ...]
    remap: Callable[[Address], Address] | None = None


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The sentinels that know a primary by the name of its service, and redis-py's options for connecting to them."""

    nodes: tuple[Address, ...]
    service: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: redis-py's `min_other_sentinels` and `force_master_ip`
    manager: Mapping[str, Any] = field(default_factory=dict)


#: What locates the primary; None: the address is fixed.
Site = Cluster | Sentinels | None


def hash_tag(key: str) -> str:
    """The part of a key that decides its slot."""
    start = key.find("{")
    end = key.find("}", start + 1)
    return key[start + 1 : end] if -1 < start < end - 1 else key


def is_misrouted(error: Any) -> bool:
    """Whether an error says that a call has not run, or not written, since its server can't serve it.

    Redis refuses so before a script runs, or at the script's first write. ASK is never followed: while a slot's keys
    are moved one by one, some key of a script that writes is always missing, if only its channel.
    """
    return isinstance(error, _MISROUTED) or (
        isinstance(error, redis_errors.ResponseError) and str(error).startswith("NOREPLICAS")
    )


def must_move(error: Exception) -> bool:
    """Whether the server may not be the right one any more."""
    return type(error) is redis_errors.MovedError or not isinstance(error, _WAITS)


def without_address(error: Exception) -> Exception:
    """The error to report when no try was left: a slot that moves says where to, which helps no caller."""
    return redis_errors.TryAgainError() if isinstance(error, redis_errors.AskError) else error


class Locates(Protocol):
    """What `Place` needs of a locator."""

    def find(self, tag: str) -> Address:
        """The address of a tag's primary, as it was last read; raises a RedisError if it is unknown."""

    def primaries(self) -> list[Address]:
        """Every primary, in the same way."""

    def remap(self, address: Address) -> Address:
        """How to reach an address that a node announced."""


class Place:
    """Where one hash tag's primary is. The empty tag means any primary."""

    def __init__(self, locator: Locates, tag: str) -> None:
        self._locator = locator
        self.tag = tag
        #: what is known since then is believed
        self.doubted_at = -inf
        self._address: Address | None = None
        self._named: Address | None = None

    def doubt(self, error: Exception, now: float) -> None:
        """A connection failed, or its server serves the tag no more."""
        if not must_move(error):
            return
        self.doubted_at = now
        if type(error) is redis_errors.MovedError:
            host = error.host or (self._address[0] if self._address else "")
            self._named = self._locator.remap((host, error.port)) if host else None

    def take_named(self) -> Address | None:
        """Take the address that a server has named when it refused a call. It is tried once, without asking again."""
        named, self._named = self._named, None
        if named is not None:
            self._address = named
        return named

    def find(self) -> Address:
        """The address as it was last read. Without a tag, another primary than the last one, if there is one."""
        if self.tag:
            self._address = self._locator.find(self.tag)
        else:
            primaries = self._locator.primaries()
            others = [address for address in primaries if address != self._address]
            self._address = random.choice(others or primaries)
        return self._address

    def check(self, info: bytes | str | None) -> None:
        """Check the INFO of a new connection's server.

        Raises
        ------
        redis.exceptions.ReadOnlyError
            It is a replica.
        """
        text = info.decode("utf-8", "replace") if isinstance(info, bytes) else info or ""
        role = _ROLE.search(text)
        if role is not None and role[1] != "master":
            raise redis_errors.ReadOnlyError("the server is a replica")
