"""Whether the Redis behind a connection is the one that a writer knows.

The leases that a write counts may have been lost with a restart or a failover, while the views that hold them do not
know yet. So a writer that meets a server which is not the one it knew, or which has only just started, lets one whole
lease pass before it takes the count for complete. Redis names itself in INFO: `run_id` changes with a restart,
`master_replid` with a promotion.
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
    settled_at : float
        Local time, monotonic, before which no write may count on the leases it sees.
    """

    __slots__ = ("_identity", "_lease_s", "countable_at")

    def __init__(self, lease_s: float = 2.0) -> None:
        self.countable_at = 0.0
        self._lease_s = lease_s
        self._identity: tuple[str, str] | None = None

    def observed(self, info: bytes | str | None, now: float) -> None:
        """A connection was made, and this is how its server names itself.

        None says that the server denies INFO to this user: then it may be another one with each connection. What has no
        INFO at all is fakeredis, and always the same.
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
