"""Whether the Redis behind a connection is the one that a writer knows.

A restart or a failover may lose leases, while their views still call themselves fresh. So a writer that finds another
server, or one that has just started, waits for one whole lease before it trusts the count. Redis identifies itself in
INFO: `run_id` changes with a restart, `master_replid` with a promotion.
"""

from __future__ import annotations

import re

#: The command whose answer `ServerIdentity.observed` takes; each new connection sends it ahead of its first write.
IDENTIFY = ("INFO", "server", "replication")

_FIELD = re.compile(r"^(run_id|master_replid|uptime_in_seconds):(\S*)\r?$", re.MULTILINE)


class ServerIdentity:
    """What one store knows of the server it writes to.

    Attributes
    ----------
    countable_at : float
        Local monotonic time, in seconds. Before it, no write may rely on its count of the leases.
    """

    __slots__ = ("_identity", "_lease_s", "countable_at")

    def __init__(self, lease_s: float = 2.0) -> None:
        self.countable_at = 0.0
        self._lease_s = lease_s
        self._identity: tuple[str, str] | None = None

    def observed(self, info: bytes | str | None, now: float) -> None:
        """Take the INFO of the server that a new connection reached.

        None: the server denies INFO to this user, so each connection may reach another server. Empty: fakeredis, which
        has no INFO and is always the same server.
        """
        text = info.decode("utf-8", "replace") if isinstance(info, bytes) else info or ""
        fields = dict(_FIELD.findall(text))
        identity = (fields.get("run_id", ""), fields.get("master_replid", ""))
        known, self._identity = self._identity, identity
        if known is None:
            # Redis rounds its uptime down to whole seconds.
            wait_s = self._lease_s - float(fields["uptime_in_seconds"]) if "uptime_in_seconds" in fields else 0.0
        else:
            wait_s = self._lease_s if info is None or identity != known else 0.0
        if wait_s > 0.0:
            self.countable_at = max(self.countable_at, now + wait_s)
