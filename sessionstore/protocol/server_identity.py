"""Whether a new connection has reached the same Redis as before.

A restart or a failover may lose leases whose views are still fresh. So if a writer finds another server, or one that
has just started, it waits for a whole lease before it relies on the number of leases. INFO identifies Redis: `run_id`
changes with a restart, `master_replid` with a promotion.
"""

from __future__ import annotations

import re

#: Each new connection sends this command before its first write. `ServerIdentity.observed` takes the answer.
IDENTIFY = ("INFO", "server", "replication")

_FIELD = re.compile(r"^(run_id|master_replid|uptime_in_seconds):(\S*)\r?$", re.MULTILINE)


class ServerIdentity:
    """The server that a store writes to, as far as the store knows.

    Attributes
    ----------
    countable_at : float
        Local monotonic time, in seconds. Before it, no write may rely on its count of the leases.
    """

    def __init__(self, lease_s: float = 2.0) -> None:
        self.countable_at = 0.0
        self._lease_s = lease_s
        self._identity: tuple[str, str] | None = None

    def observed(self, info: bytes | str | None, now: float) -> None:
        """Take the INFO of the server that a new connection reached.

        None: the user may not run INFO, so each connection may reach another server. Empty: fakeredis, which has no
        INFO and is always the same server.
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
            self.countable_at = max(self.countable_at, now + min(wait_s, self._lease_s))
