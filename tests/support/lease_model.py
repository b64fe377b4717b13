"""A model of the scripts on an environment's head and leases, small enough to copy a million times.

`test_lease_model.py` compares it with the scripts on a real Redis; `test_lease_protocol.py` explores the protocol with
it. Times are ms of Redis's clock, which the caller moves.
"""

from __future__ import annotations

from sessionstore.protocol.messages import Applied
from sessionstore.protocol.replies import AckReply, LeaseReply, LeaseStatusReply, WriteReply

__all__ = ["Rules", "ServerModel"]


class Rules:
    """Rules of the scripts, which a planted flaw may break."""

    #: renew.lua: only a view that has applied the head of its last answer may renew
    previous_head = True
    #: renew.lua: a late renewal of a view that is behind loses the time that it is late
    late = True
    #: lib/revision.lua: if leases may be lost, writers wait for a whole lease
    keeps_countable_at = True
    #: lib/revision.lua: leases belong to a run of the server
    run = True
    #: lib/primary.lua: under another primary no lease is prolonged or dropped
    own_clock = True


class ServerModel:
    """The head, leases, acks and views of one environment, and the number of its subscribers."""

    __slots__ = (
        "acks",
        "announced",
        "countable_at",
        "epoch",
        "expired",
        "id",
        "leases",
        "listeners",
        "lost",
        "notes",
        "now",
        "published",
        "rev",
        "rules",
        "server_run",
    )

    def __init__(self, *, now: int = 0, server_run: str = "-", rules: type[Rules] = Rules) -> None:
        self.now = now
        self.server_run = server_run
        self.rules = rules
        self.listeners = 0
        self.flush()
        #: Applied messages, and changes as (rev, id, prev, epoch), since the caller last took them
        self.announced: list[Applied] = []
        self.published: list[tuple[int, str, str, str]] = []

    def copy(self) -> ServerModel:
        other = ServerModel.__new__(ServerModel)
        other.now = self.now
        other.server_run = self.server_run
        other.rules = self.rules
        other.listeners = self.listeners
        other.rev = self.rev
        other.id = self.id
        other.expired = self.expired
        other.countable_at = self.countable_at
        other.lost = self.lost
        other.epoch = self.epoch
        other.leases = dict(self.leases)
        other.acks = dict(self.acks)
        other.notes = dict(self.notes)
        other.announced = []
        other.published = []
        return other

    def flush(self) -> None:
        #: None: no head exists
        self.rev: int | None = None
        self.id = ""
        self.expired = 0
        self.countable_at = 0
        self.lost = 0
        self.epoch = ""
        #: lease → expiry; the revision it acknowledged; (head of its last answer, applied, epoch)
        self.leases: dict[str, int] = {}
        self.acks: dict[str, int] = {}
        self.notes: dict[str, tuple[int, int, str]] = {}

    # The scripts

    def join(self, lease_id: str, lease_ms: int, rev: int, write_id: str) -> LeaseReply:
        self._open(lease_ms, known=rev, own=1)
        floor = self._floor()
        self._purge()
        if self.epoch == "":
            self.epoch = f"{self.server_run}:{lease_id}"
        self.rev = self.rev or 0
        status = "forked" if self._is_forked(rev, write_id) else "ok"
        if status == "ok":
            self.leases[lease_id] = self.now + lease_ms
            self.acks[lease_id] = self.rev
            self.notes[lease_id] = (self.rev, rev, self.epoch)
        self._announce(floor)
        return self._reply(status, lease_ms if status == "ok" else 0)

    def renew(self, lease_id: str, lease_ms: int, rev: int, write_id: str, epoch: str) -> LeaseReply:
        if self._is_idle(lease_id, rev, write_id, epoch) and self.leases[lease_id] != self.now + lease_ms:
            self.leases[lease_id] = self.now + lease_ms
            return LeaseReply(status="same", now=self.now, lease_ms=lease_ms)
        if self._open(lease_ms, known=rev):
            self.rev = self.rev or 0
        floor = self._floor()
        self._purge()
        status, lasts = "ok", 0
        if lease_id not in self.leases or self.notes[lease_id][2] != self.epoch:
            status = "expired"
        elif self._is_forked(rev, write_id):
            status = "forked"
        elif rev < self.notes[lease_id][0] and self.rules.previous_head:
            status = "refused"
        else:
            head = self.rev or 0
            due = self.leases[lease_id] - lease_ms + int(lease_ms / 3 + lease_ms / 20)
            lasts = lease_ms - (max(0, self.now - due) if rev < head and self.rules.late else 0)
            self.leases[lease_id] = self.now + lasts
            self._acknowledge(lease_id, rev)
            self.notes[lease_id] = (head, *self.notes[lease_id][1:])
        self._announce(floor)
        return self._reply(status, lasts)

    def ack(self, lease_id: str, rev: int, write_id: str, epoch: str) -> AckReply:
        forked, floor = self._is_forked(rev, write_id), self._floor()
        if epoch == self.epoch and not forked and rev > self.acks.get(lease_id, rev):
            # Expired leases are not dropped.
            self._acknowledge(lease_id, rev)
            self._announce(floor)
            return AckReply(status="ok")
        self._purge_own()
        status = "ok"
        if lease_id not in self.leases or epoch != self.epoch:
            status = "expired"
        elif forked:
            status = "forked"
        else:
            self._acknowledge(lease_id, rev)
        self._announce(floor)
        return AckReply(status=status)

    def leave(self, lease_id: str) -> LeaseReply:
        floor = self._floor()
        self._drop(lease_id)
        self._purge_own()
        self._announce(floor)
        return self._reply("ok", 0)

    def write(self, write_id: str, lease_ms: int, known: int) -> WriteReply:
        """A PUT that changes something."""
        self._open(lease_ms, known=known)
        self._purge()
        rev = (self.rev or 0) + 1
        live, pending = len(self.leases), sum(ack < rev for ack in self.acks.values())
        self.published.append((rev, write_id, self.id, self.epoch))
        self.rev, self.id = rev, write_id
        countable_in_ms = max(0, self.countable_at - self.now)
        return WriteReply(
            status="ok",
            now=self.now,
            rev=rev,
            target_rev=rev,
            live=live,
            pending=pending,
            expired=self.expired,
            countable_in_ms=countable_in_ms,
            epoch=self.epoch,
        )

    def lease_status(self, rev: int, lease_ms: int) -> LeaseStatusReply:
        if self._open(lease_ms, known=rev):
            self.rev = self.rev or 0
        self._purge()
        behind = [lease_id for lease_id, ack in self.acks.items() if ack < rev]
        return LeaseStatusReply(
            now=self.now,
            rev=self.rev or 0,
            live=len(self.leases),
            pending=len(behind),
            expired=self.expired,
            lease_left_ms=max((self.leases[lease_id] - self.now for lease_id in behind), default=0),
            countable_in_ms=max(0, self.countable_at - self.now),
            epoch=self.epoch,
        )

    # Fragments

    def _open(self, lease_ms: int, known: int, own: int = 0) -> bool:
        countable_at = self.countable_at
        forgotten = True
        if (self.rev or 0) < known and self.lost < known:
            countable_at = countable_at if countable_at > self.now else self.now + lease_ms
            self.lost = known
        elif self.rev is None and self.listeners > own:
            countable_at = self.now + lease_ms
        else:
            forgotten = False
        if self.rules.run and self.epoch != "" and not self._is_of_this_run():
            self.epoch = f"{self.server_run}:{self.epoch.partition(':')[2]}"
            countable_at = self.now + lease_ms
            forgotten = True
        if self.rules.keeps_countable_at:
            self.countable_at = countable_at
        return forgotten

    def _is_of_this_run(self) -> bool:
        run = self.epoch.partition(":")[0]
        return run == self.server_run or "-" in (run, self.server_run)

    def _purge_own(self) -> None:
        if self._is_of_this_run() or not self.rules.own_clock:
            self._purge()

    def _purge(self) -> None:
        for lease_id in [lease_id for lease_id, expiry in self.leases.items() if expiry <= self.now]:
            self._drop(lease_id)
            self.expired += 1

    def _drop(self, lease_id: str) -> None:
        self.leases.pop(lease_id, None)
        self.acks.pop(lease_id, None)
        self.notes.pop(lease_id, None)

    def _is_idle(self, lease_id: str, rev: int, write_id: str, epoch: str) -> bool:
        """Whether a lease's view has acknowledged the head already, as it says by naming its epoch.

        Nobody has missed a lease that is still there.
        """
        if lease_id not in self.leases or (self.rev, self.id) != (rev, write_id):
            return False
        if self.rules.own_clock and not self._is_of_this_run():
            return False
        return epoch == self.epoch

    def _acknowledge(self, lease_id: str, rev: int) -> None:
        self.acks[lease_id] = max(self.acks[lease_id], rev)
        head, applied, epoch = self.notes[lease_id]
        self.notes[lease_id] = (head, max(applied, rev), epoch)

    def _is_forked(self, rev: int, write_id: str) -> bool:
        head = self.rev or 0
        return rev > head or (rev == head and write_id != self.id)

    def _floor(self) -> int:
        return min(self.acks.values(), default=self.rev or 0)

    def _announce(self, before: int) -> None:
        floor = self._floor()
        if floor > before:
            self.announced.append(Applied(floor, len(self.leases), self.expired, self.epoch))

    def _reply(self, status: str, lasts: int) -> LeaseReply:
        return LeaseReply(status=status, now=self.now, rev=self.rev or 0, id=self.id, epoch=self.epoch, lease_ms=lasts)
