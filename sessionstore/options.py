"""The settings that both stores take, checked once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from .errors import InvalidInputError, SessionStoreError
from .protocol.calls import REPLICAS_RULE, Quotas, WriteContext, is_number_of_replicas
from .protocol.keyspace import DEFAULT_PREFIX, EnvironmentKeyspace, StoreKeyspace
from .protocol.server_identity import ServerIdentity
from .session import validate_actor

_log = logging.getLogger("sessionstore")


#: Seconds that a session lives after it was last seen.
DEFAULT_TTL_S = 24 * 60 * 60.0
#: Seconds that a view's lease lasts.
DEFAULT_LEASE_S = 2.0

#: Seconds that one call may take in all, connecting included.
DEFAULT_DEADLINE_S = 2.0
#: The bounds of each, in seconds.
TTL_RANGE_S = (0.001, 366 * 24 * 60 * 60.0)
LEASE_RANGE_S = (0.1, 60.0)
DEADLINE_RANGE_S = (0.05, 60.0)
#: The most connections of one store. Further calls wait for one within their deadline.
MAX_CONNECTIONS = 64

#: Called after each round trip with the script, the seconds it took, and its error or None.
Observer = Callable[[str, float, SessionStoreError | None], None]

#: Environments of one project that no catalog registers.
DEFAULT_MAX_ENVIRONMENTS = 1000
#: The most that a quota may be.
MAX_QUOTA = 2**53 - 1

#: The message of a closed store.
CLOSED = "This store is closed; open another."

#: The most environments whose revision a store remembers.
_MAX_CONTEXTS = 4096


class StoreOptions(TypedDict, total=False):
    """Keyword arguments that every way to open a store takes: the attributes of `StoreConfig`."""

    ttl_s: float
    lease_s: float
    deadline_s: float
    prefix: str
    observe: Observer | None
    actor: str
    replicas: int
    max_sessions: int | None
    max_project_bytes: int | None
    max_environments: int | None


@dataclass(slots=True)
class StoreConfig:
    """Settings of one store, and the environments it has used.

    Attributes
    ----------
    ttl_s : float
        Seconds that a session lives after it was last seen: 0.001 to 366 days.
    lease_s : float
        Seconds that a view's lease lasts: 0.1 to 60. All stores on one Redis need the same.
    deadline_s : float
        Seconds that one call may take in all: 0.05 to 60.
    prefix : str
        In front of every key.
    observe : callable or None
        Called after each round trip with the script, the seconds it took, and its error or None. An error that it
        raises is logged, and has no other effect.
    actor : str
        Who writes, for people: at most 256 printable characters. Sessions show their last writer.
    replicas : int
        Replicas of Redis that must have each write before it returns, 0 to 10; a write's own `replicas` wins.
    max_sessions : int or None
        Quota of this store's writes: sessions of one environment, at least 1; None for any number.
    max_project_bytes : int or None
        Quota: bytes of one project's sessions, at least 1. A session takes 500, and its key, label and ids.
    max_environments : int or None
        Quota: environments of one project that no catalog registers, at least 1.
    """

    ttl_s: float = DEFAULT_TTL_S
    lease_s: float = DEFAULT_LEASE_S
    deadline_s: float = DEFAULT_DEADLINE_S
    prefix: str = DEFAULT_PREFIX
    observe: Observer | None = None
    actor: str = ""
    replicas: int = 0
    max_sessions: int | None = None
    max_project_bytes: int | None = None
    max_environments: int | None = DEFAULT_MAX_ENVIRONMENTS
    #: number of the Redis database, which is part of a channel's name
    database: int = field(default=0, init=False)
    #: seconds, monotonic; the driver sets it before the first `context`
    clock: Callable[[], float] = field(init=False, repr=False)
    #: the identity of the server that the store writes to, if it is one for all projects
    server: ServerIdentity = field(init=False, repr=False)
    #: the identity of the server of a hash tag; the driver replaces it if each may have a server of its own
    server_of: Callable[[str], ServerIdentity] = field(init=False, repr=False)
    _quotas: Quotas = field(init=False, repr=False)
    _contexts: dict[tuple[str, str], WriteContext] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        StoreKeyspace(self.prefix)
        validate_actor(self.actor)
        if not is_number_of_replicas(self.replicas):
            raise InvalidInputError(f"replicas {REPLICAS_RULE}.")
        if self.observe is not None:
            self.observe = _guarded(self.observe)
        check_seconds("ttl_s", self.ttl_s, *TTL_RANGE_S)
        check_seconds("lease_s", self.lease_s, *LEASE_RANGE_S)
        self.server = ServerIdentity(self.lease_s)
        self.server_of = lambda _: self.server
        for name in ("max_sessions", "max_project_bytes", "max_environments"):
            quota = getattr(self, name)
            if quota is not None and not (type(quota) is int and 1 <= quota <= MAX_QUOTA):
                raise InvalidInputError(f"{name} must be None or a whole number of at least 1.")
        self._quotas = Quotas(self.max_sessions, self.max_project_bytes, self.max_environments)
        check_seconds("deadline_s", self.deadline_s, *DEADLINE_RANGE_S)

    def context(self, project: str, environment: str) -> WriteContext:
        """The context of an environment's writes: always the same object, because it remembers the revision."""
        try:
            return self._contexts[project, environment]
        except (KeyError, TypeError):
            pass
        keyspace = EnvironmentKeyspace(self.prefix, project, environment, self.database)
        if len(self._contexts) >= _MAX_CONTEXTS:
            self._contexts.clear()
        ttl_ms, lease_ms = round(self.ttl_s * 1000), round(self.lease_s * 1000)
        context = WriteContext(keyspace, ttl_ms, lease_ms, self.clock, self._quotas, server=self.server_of(project))
        return self._contexts.setdefault((project, environment), context)


def _guarded(observe: Observer) -> Observer:
    """Log an observer's error instead of raising it: the observed call has already returned."""

    def tell(script: str, seconds: float, error: SessionStoreError | None) -> None:
        try:
            observe(script, seconds, error)
        except Exception:
            _log.exception("The observer of a store failed; the store goes on.")

    return tell


def check_seconds(name: str, value: float, low: float, high: float) -> None:
    """Check a setting that is a number of seconds.

    Raises
    ------
    InvalidInputError
    """
    if not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInputError(f"{name} must be a number of seconds from {low:.15g} to {high:.15g}.")
