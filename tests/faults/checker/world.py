"""The processes of one run, and the faults that hit them. `servers` has the faults of Redis."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sessionstore.api_keys.model import generate_secret

from ...support.coverage import unmeasured
from ...support.redis_server import free_port
from .child import BRIEF, KEYS, MAIN, ChildSettings
from .history import Contents, Recorder, Stall, Stored, digest_of
from .plan import Planned
from .relay import Direction, SortingRelay, Traffic
from .servers import Access, FaultLog, Servers, stop_for

__all__ = ["World"]

#: Seconds that a process may take to start, that an order may take, and that the views may take to equal Redis after
#: all faults.
_START_S, _ORDER_S, _HEAL_S = 60.0, 40.0, 30.0

#: Seconds between two PINGs, and the age at which an answer is late.
_WATCH_S, _STALL_S = 0.02, 0.1

#: The variants of holes and of slow links.
_DIRECTIONS: tuple[tuple[Direction, ...], ...] = (("up", "down"), ("down",), ("up",))
_DELAYS_S = (0.05, 0.15, 0.4)


class Child:
    """A process that reads orders from its standard input."""

    def __init__(self, module: str, settings: ChildSettings, folder: Path) -> None:
        self.name = settings.name
        self._errors = (folder / f"{settings.name}.stderr").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.faults.checker.{module}", msgspec.json.encode(settings).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=Path(__file__).parents[3],
            env=unmeasured(),
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=f"answers of {self.name}", daemon=True)
        self._reader.start()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_start(self) -> None:
        self._answer(_START_S)

    def order(self, what: str, **arguments: Any) -> Any:
        """Give an order and wait for its answer."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer(_ORDER_S)

    def end(self) -> int:
        """Let the process exit; return its exit code."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            return self._process.wait(_ORDER_S)
        finally:
            self.kill()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _answer(self, timeout_s: float) -> Any:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"{self.name} did not answer within {timeout_s:g} s") from None
        assert line, f"{self.name} exited; see its standard error"
        return json.loads(line)


class World:
    """Redis, gateways, writers and views.

    Parameters
    ----------
    servers : Servers
        The Redis.
    folder : Path
        The folder of the records and of the processes' output.
    seed : int
        Decides the choices of the processes.
    lease_s : float
        The lease of all stores.
    views, gateways : int
        The numbers of processes. Every second view uses asyncio.
    """

    def __init__(self, servers: Servers, folder: Path, seed: int, lease_s: float, views: int, gateways: int) -> None:
        self.folder = folder
        self._servers = servers
        self.lease_s = lease_s
        self._seed = seed
        self._secret = generate_secret()
        self._stack = contextlib.ExitStack()
        self._recorder = Recorder(folder / "world.jsonl")
        self._log = FaultLog(self._recorder)
        self._views: list[Child | None] = [None] * views
        self._births = [0] * views
        self._gateway_ports = [free_port() for _ in range(gateways)]
        self._gateways: list[subprocess.Popen[bytes] | None] = [None] * gateways
        self._writers: list[Child] = []
        self._ended = threading.Event()
        self._server_lock = threading.Lock()
        self._view_locks = [threading.Lock() for _ in range(views)]
        self._hole_locks = {(index, kind): threading.Lock() for index in range(views) for kind in ("link", "calls")}
        self._gateway_locks = [threading.Lock() for _ in range(gateways)]

    # Life cycle

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._recorder.close)
            stack.callback(self._servers.close)
            self._servers.start(self.folder, self._log)
            stack.callback(self._kill_all)
            for index in range(len(self._gateways)):
                self._start_gateway(index)
            for index in range(len(self._views)):
                self._start_view(index)
            urls = [f"http://127.0.0.1:{port}" for port in self._gateway_ports]
            for kind in ("sync", "asyncio", "http"):
                name = f"writer-{kind}"
                access = Access(urls) if kind == "http" else self._servers.access(name)
                self._writers.append(Child("writer", self._settings(name, kind, access), self.folder))
            for child in (*self._writers, *self._living_views()):
                child.await_start()
            for index in range(len(self._gateways)):
                self._await_gateway(index)
            stack.callback(self._ended.set)
            for port in self._servers.ports():
                threading.Thread(target=self._watch_redis, args=(port,), name="redis-watch", daemon=True).start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def finish(self) -> None:
        """Stop all processes in order, so that they write all their records."""
        for child in (*self._writers, *self._living_views()):
            code = child.end()
            assert code == 0, f"{child.name} ended with {code}; see its standard error"
        self._recorder.flush()

    # Rounds

    def resume(self) -> None:
        """Start the writes and the look-ups."""
        for child in (*self._living_views(), *self._writers):
            child.order("resume")

    def run_round(self, plan: list[Planned]) -> None:
        """Cause the faults of a round; return when all are over."""
        began = time.monotonic()
        failures: list[BaseException] = []

        def do(planned: Planned) -> None:
            time.sleep(max(0.0, began + planned.at_s - time.monotonic()))
            try:
                self._do(planned)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=do, args=(planned,), name=planned.kind.name) for planned in plan]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self._servers.await_healthy()

    def await_recovery(self, round_number: int) -> float:
        """Pause everything, wait until every view is fresh at Redis's revision, and record all sessions.

        Return the seconds from the round's last fault until then. After too long, it records the sessions as they are,
        and the validators report the difference.
        """
        healed = time.monotonic()
        # Views first: they report their last look-ups, and then no touch follows.
        in_touch_s = 0.0
        while not in_touch_s:
            held = [child.order("dump") for child in self._living_views()]
            if all(view["fresh"] for one in held for view in one.values()) or time.monotonic() > healed + _HEAL_S:
                in_touch_s = time.monotonic() - healed
            else:
                time.sleep(0.02)
        for child in self._writers:
            assert child.order("pause"), f"a write of {child.name} did not return"
        for child in self._living_views():
            child.order("pause")
        deadline = time.monotonic() + _HEAL_S
        while True:
            before = self._redis_contents(round_number)
            views = self._view_contents(round_number)
            truth = self._redis_contents(round_number)
            settled = all(
                (one.revision, one.sessions) == (truth[name].revision, truth[name].sessions)
                for name, one in before.items()
            ) and all(one.fresh and one.revision == truth[one.environment].revision for one in views)
            if settled or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for one in (*truth.values(), *views):
            self._recorder.add(one)
        return in_touch_s

    def _redis_contents(self, round_number: int) -> dict[str, Contents]:
        contents = {}
        now_ms = time.time() * 1000
        for project in self._servers.projects:
            with self._servers.client(project) as client:
                for name in (MAIN, BRIEF):
                    place = f"{project}/{name}"
                    base = f"ss:{{{project}}}:{name}"
                    contents[place] = Contents(
                        round=round_number,
                        holder="redis",
                        environment=place,
                        revision=int(client.hget(f"{base}:head", "rev") or 0),
                        read_at_ms=now_ms,
                        sessions={
                            f"{place}/{key}": _stored(fields)
                            for key in KEYS[name]
                            if (fields := client.hgetall(f"{base}:s:{key}")) and int(fields["expiresAt"]) > now_ms
                        },
                    )
        return contents

    def _view_contents(self, round_number: int) -> list[Contents]:
        return [
            Contents(
                round=round_number,
                holder=child.name,
                environment=name,
                revision=held["revision"],
                fresh=held["fresh"],
                sessions={key: Stored(*stored) for key, stored in held["sessions"].items()},
            )
            for child in self._living_views()
            for name, held in child.order("dump").items()
        ]

    # Faults

    def _do(self, planned: Planned) -> None:
        hold_s = planned.leases * self.lease_s
        view = planned.index % len(self._views)
        gateway = planned.index % len(self._gateways)
        directions = _DIRECTIONS[planned.variant % len(_DIRECTIONS)]
        match planned.kind.name:
            case "view-stopped":
                with self._view_locks[view], self._log.during(planned, f"view-{view}"):
                    stop_for(self._view(view).pid, hold_s)
            case "view-killed":
                with self._view_locks[view], self._log.during(planned, f"view-{view}"):
                    self._view(view).kill()
                    time.sleep(hold_s)
                    self._start_view(view)
                    self._view(view).await_start()
                    self._view(view).order("resume")
            case "loop-stalled":
                view = self._nth_asyncio_view(planned.index)
                with self._view_locks[view], self._log.during(planned, f"view-{view}"):
                    self._view(view).order("stall", seconds=hold_s)
            case "view-link-hole":
                self._dig(planned, view, "link", directions, hold_s)
            case "view-calls-hole":
                self._dig(planned, view, "calls", directions, hold_s)
            case "view-network-hole":
                self._dig_twice(planned, view, hold_s)
            case "view-slow":
                with self._hole_locks[view, "link"], self._log.during(planned, f"view-{view}"):
                    self._relay(view).delay_messages(_DELAYS_S[planned.variant % len(_DELAYS_S)])
                    # The view syncs and takes a lease while messages are late.
                    self._relay(view).cut()
                    time.sleep(hold_s)
                    self._relay(view).delay_messages(0.0)
            case "view-cut":
                with self._log.during(planned, f"view-{view}"):
                    self._relay(view).cut()
            case "gateway-stopped":
                with self._gateway_locks[gateway], self._log.during(planned, f"gateway-{gateway}"):
                    process = self._gateways[gateway]
                    assert process is not None
                    stop_for(process.pid, hold_s)
            case "gateway-killed":
                with self._gateway_locks[gateway], self._log.during(planned, f"gateway-{gateway}"):
                    process = self._gateways[gateway]
                    assert process is not None
                    process.kill()
                    process.wait(10)
                    time.sleep(hold_s)
                    self._start_gateway(gateway)
                    self._await_gateway(gateway)
            case _:
                with self._server_lock:
                    self._servers.do(planned, hold_s)

    def _dig(
        self, planned: Planned, view: int, traffic: Traffic, directions: tuple[Direction, ...], hold_s: float
    ) -> None:
        """Hold one kind of a view's traffic; deliver it later."""
        relay = self._relay(view)
        with (
            self._hole_locks[view, traffic],
            self._log.during(planned, f"view-{view}", detail=" and ".join(directions)),
        ):
            relay.hold(traffic, directions=directions)
            time.sleep(hold_s)
            relay.release(traffic, directions=directions)

    def _dig_twice(self, planned: Planned, view: int, hold_s: float) -> None:
        """Hold everything that a view receives; deliver answers first, and messages later."""
        relay = self._relay(view)
        with (
            self._hole_locks[view, "link"],
            self._hole_locks[view, "calls"],
            self._log.during(planned, f"view-{view}"),
        ):
            relay.hold(directions=("down",))
            time.sleep(hold_s)
            relay.release("calls", directions=("down",))
            time.sleep(self.lease_s)
            relay.release("link", directions=("down",))

    # Processes

    def _settings(self, name: str, kind: str, access: Access) -> ChildSettings:
        return ChildSettings(
            name=name,
            kind=kind,
            urls=access.urls,
            remap=access.remap,
            projects=list(self._servers.projects),
            seed=self._seed,
            lease_s=self.lease_s,
            deadline_s=1.0,
            path=str(self.folder / f"{name}.jsonl"),
            api_key=self._secret,
            gateways=[f"gateway-{index}" for index in range(len(self._gateways))],
        )

    def _start_view(self, index: int) -> None:
        kind = ("sync", "asyncio")[index % 2]
        name = f"view-{index}.{self._births[index]}"
        self._births[index] += 1
        access = self._servers.access(f"view-{index}")
        self._views[index] = Child("viewer", self._settings(name, kind, access), self.folder)

    def _relay(self, view: int) -> SortingRelay:
        return self._servers.relay(f"view-{view}")

    def _view(self, index: int) -> Child:
        child = self._views[index]
        assert child is not None
        return child

    def _living_views(self) -> list[Child]:
        return [child for child in self._views if child is not None]

    def _nth_asyncio_view(self, number: int) -> int:
        return [index for index in range(len(self._views)) if index % 2][number % (len(self._views) // 2)]

    def _start_gateway(self, index: int) -> None:
        log = (self.folder / f"gateway-{index}.stderr").open("ab")
        with log:
            self._gateways[index] = subprocess.Popen(
                [sys.executable, "-m", "gateway", "--port", str(self._gateway_ports[index]), "--no-access-log"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=Path(__file__).parents[3],
                env={
                    **{name: value for name, value in unmeasured().items() if not name.startswith("SESSIONSTORE_")},
                    "SESSIONSTORE_REDIS_URL": self._servers.url,
                    "SESSIONSTORE_API_KEY": self._secret,
                    "SESSIONSTORE_LEASE": str(self.lease_s),
                    "SESSIONSTORE_DEADLINE": "1",
                    "SESSIONSTORE_RATE_LIMIT": "off",
                },
            )

    def _await_gateway(self, index: int) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._gateway_ports[index], timeout=5)
            try:
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            process = self._gateways[index]
            assert process is not None
            assert process.poll() is None, f"gateway {index} has ended; see its standard error"
            assert time.monotonic() < deadline, f"gateway {index} does not answer"
            time.sleep(0.02)

    def _kill_all(self) -> None:
        for child in (*self._writers, *self._living_views()):
            child.kill()
        for process in self._gateways:
            if process is not None:
                process.kill()
                process.wait(10)

    def _watch_redis(self, port: int) -> None:
        """Record when a server did not answer a PING at once, because of a fault or a busy machine."""
        started = time.monotonic()
        while not self._ended.wait(_WATCH_S):
            try:
                with redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=1.0) as client:
                    while not self._ended.is_set():
                        client.ping()
                        now = time.monotonic()
                        if now - started > _STALL_S and (projects := self._servers.concerned(port)):
                            self._recorder.add(Stall(process="redis", started=started, ended=now, projects=projects))
                        self._ended.wait(_WATCH_S)
                        started = time.monotonic()
            except redis.RedisError:
                pass  # and it has not answered since then


def _stored(fields: dict[str, str]) -> Stored:
    """A session, from its hash in Redis."""
    digest = digest_of(
        fields.get("label"),
        fields.get("scenario"),
        json.loads(fields.get("overrides", "[]")),
        int(fields.get("globalDelayMs", 0)),
        int(fields.get("globalDelayMaxMs", 0)),
    )
    return Stored(int(fields["rev"]), digest, int(fields["expiresAt"]))
