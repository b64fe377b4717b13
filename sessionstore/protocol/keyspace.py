"""The names of everything in Redis.

The hash tag ``{project}`` puts one project's keys into one cluster slot, so that one script can touch them all. Slugs
can't hold ``:``, ``{`` or ``}``; a session key may hold anything, so it comes last.
"""

from __future__ import annotations

import re

from ..errors import InvalidSlugError
from ..session import validate_slug

DEFAULT_PREFIX = "ss"

#: The layout of an environment's head, leases and messages; scripts/lib/layout.lua has the same.
LAYOUT = 2

_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,32}\Z")


def validate_prefix(prefix: str) -> str:
    """Check the prefix of all keys: 1 to 32 letters, digits, ``.``, ``_`` or ``-``."""
    if not _PREFIX.match(prefix):
        raise InvalidSlugError("The key prefix must be 1 to 32 letters, digits, '.', '_' or '-'.")
    return prefix


class StoreKeyspace:
    """Keys that belong to no project."""

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        self.prefix = validate_prefix(prefix)
        #: hash: SHA-256 of an API key → its record
        self.api_keys = f"{prefix}:keys"

    def requests(self, key_id: str) -> str:
        """string, with a TTL: the requests of an API key in its window. It is in the slot of `api_keys`."""
        return f"{self.prefix}:limits:{{{self.api_keys}}}:{key_id}"


class ProjectKeyspace:
    """Keys of one project."""

    def __init__(self, prefix: str, project: str) -> None:
        #: set: the slugs of the project's registered environments
        base = f"{prefix}:{{{validate_slug(project, 'project')}}}:"
        self.environments = f"{base}environments"
        #: sorted set: other environments that were written, by the time until which they are kept, ms
        self.unregistered = f"{base}unregistered"
        #: hash: what the sessions take, for quotas; scripts/lib/usage.lua
        self.usage = f"{base}usage"
        #: sorted set: the sessions that `usage` counts, by expiry, ms
        self.ledger = f"{base}ledger"
        #: how the names of environments' keys begin
        self.base = base


class EnvironmentKeyspace:
    """Keys and channels of one environment."""

    def __init__(self, prefix: str, project: str, environment: str, database: int = 0) -> None:
        self.project = validate_slug(project, "project")
        self.environment = validate_slug(environment, "environment")
        self.of_project = ProjectKeyspace(prefix, project)
        base = self.of_project.base + environment
        self._prefix = prefix
        self._database = database
        # Channels, unlike keys, are the same in each database of a server.
        suffix = f":{database}" if database else ""
        self._session_prefix = f"{base}:s:"
        #: sorted set: session keys by lastSeenAt, ms
        self.index = f"{base}:index"
        #: hash: rev, id, and what scripts/lib/revision.lua adds
        self.head = f"{base}:head"
        #: sorted set: lease ids by expiry, ms
        self.leases = f"{base}:leases"
        #: sorted set: lease ids by the last revision their view has applied
        self.acks = f"{base}:acks"
        #: hash: lease id → the view's description of itself
        self.views = f"{base}:views"
        #: channel: every change, in commit order
        self.changes = f"{base}:changes{suffix}"
        #: channel: the revision that every live view has applied, whenever it rises
        self.applied = f"{base}:applied{suffix}"
        #: hash: the catalog and its digest; missing if the environment has no catalog
        self.catalog = f"{base}:catalog"
        #: hash: published mocks by id
        self.catalog_mocks = f"{base}:catalog:mocks"
        #: hash: scenario-local mocks by id
        self.catalog_local = f"{base}:catalog:local"
        #: hash: scenarios by id
        self.catalog_scenarios = f"{base}:catalog:scenarios"
        #: the keys that the scripts take in this order
        self.lease_keys = (self.head, self.leases, self.acks, self.views)
        self.catalog_keys = (self.catalog, self.catalog_mocks, self.catalog_local, self.catalog_scenarios)
        self.environments = self.of_project.environments
        self.quota_keys = (self.of_project.usage, self.of_project.ledger, self.of_project.unregistered)
        #: those of each write after its session, see scripts/lib/write.lua
        self.write_keys = (self.index, *self.lease_keys, self.environments, self.changes, *self.quota_keys)

    def __str__(self) -> str:
        """The environment's name in messages for people: ``checkout/staging``."""
        return f"{self.project}/{self.environment}"

    def sibling(self, environment: str) -> EnvironmentKeyspace:
        """Another environment of the project."""
        return EnvironmentKeyspace(self._prefix, self.project, environment, self._database)

    def session(self, session_key: str) -> str:
        """hash, with a TTL: one session. The key must be normalised."""
        return self._session_prefix + session_key
