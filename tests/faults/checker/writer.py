"""A process that writes sessions, with each driver or over HTTP, and records the answers.

Run by `world`: ``python -m tests.faults.checker.writer SETTINGS``.
"""

from __future__ import annotations

import asyncio
import faulthandler
import http.client
import json
import os
import random
import re
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec

from sessionstore import (
    AsyncSessionStore,
    NotEffectiveError,
    OutcomeUnknownError,
    SessionStoreError,
    StoreUnavailableError,
)
from sessionstore.session import BulkResult, Deletion, Session, SessionPatch

from .child import BRIEF, KEYS, MAIN, ChildSettings, environment_of, obey, read_settings, watch_for_stalls
from .history import Outcome, Recorder, Write, digest_of

#: The shares of writes that delete, that repeat the task's last write, and that do not wait.
_DELETES, _REPEATS, _UNWAITED = 0.15, 0.1, 0.05
#: Of the deletions, those by prefix, and of the PUTs, those that replace the state.
_BY_PREFIX, _REPLACES = 0.3, 0.3
#: Seconds that the last writes may take.
_QUIET_WITHIN_S = 20.0
_HTTP_TIMEOUT_S = 10.0
#: A TTL that outlasts a run, as the store's does.
_OWN_TTL_S = 12 * 3600

_EFFECTIVE = re.compile(r"effective;dur=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class _Plan:
    """A write to make; without a token it deletes."""

    project: str
    key: str
    token: str
    wait: bool
    #: delete the sessions whose keys begin with the key: no key of `MAIN` begins with another
    by_prefix: bool = False
    replace: bool = False

    def patch(self) -> dict[str, Any]:
        """What a PUT sets; it is the whole state, so that replacing it comes to the same."""
        # Half of the sessions that outlast a run have a TTL of their own, which also does.
        own_ttl = zlib.crc32(self.token.encode()) % 2 and environment_of(self.key) == MAIN
        return {**state_of(self.token), "ttl_seconds": _OWN_TTL_S if own_ttl else None}


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: Outcome
    revision: int = 0
    existed: bool | None = None
    effective_s: float | None = None
    detail: str = ""


def state_of(token: str) -> dict[str, Any]:
    """The whole state that a token stands for."""
    number = zlib.crc32(token.encode())
    return {
        "label": token,
        "scenario": f"scn_{number % 7}" if number % 3 else None,
        "overrides": [f"ovr_{number % 11}", f"ovr_{token.replace('/', '_')}"],
        "global_delay_ms": number % 1000,
        "global_delay_max_ms": number % 2000,
    }


def _digest(token: str) -> str:
    if not token:
        return ""
    state = state_of(token)
    return digest_of(
        state["label"], state["scenario"], state["overrides"], state["global_delay_ms"], state["global_delay_max_ms"]
    )


class _Author:
    """Chooses the writes of one task."""

    def __init__(self, name: str, seed: int, projects: list[str], keys: tuple[str, ...], pace_s: float) -> None:
        self.name = name
        self._rng = random.Random(f"{seed}/{name}")
        self._projects = projects
        self._keys = keys
        self._pace_s = pace_s
        self._count = 0
        self._last: dict[tuple[str, str], str] = {}

    def choose(self) -> _Plan:
        rng = self._rng
        project = rng.choice(self._projects)
        key = rng.choice(self._keys)
        wait = rng.random() >= _UNWAITED
        chance = rng.random()
        if chance < _DELETES:
            by_prefix = environment_of(key) == MAIN and rng.random() < _BY_PREFIX
            return _Plan(project, key, "", wait, by_prefix=by_prefix)
        if chance >= _DELETES + _REPEATS or (project, key) not in self._last:
            self._count += 1
            self._last[project, key] = f"{self.name}/{self._count}"
        return _Plan(project, key, self._last[project, key], wait, replace=rng.random() < _REPLACES)

    def pause_s(self) -> float:
        return self._rng.uniform(0.0, 2 * self._pace_s)


class _Writer:
    """The tasks of this process, and the gate before each write."""

    def __init__(self, settings: ChildSettings, recorder: Recorder) -> None:
        self.settings = settings
        self._recorder = recorder
        self.gate = threading.Event()
        self._lock = threading.Lock()
        self._under_way = 0
        keys = KEYS[MAIN] if settings.kind == "http" else KEYS[MAIN] + KEYS[BRIEF]
        self.authors = [
            _Author(f"{settings.name}/{number}", settings.seed, settings.projects, keys, settings.pace_s)
            for number in range(settings.tasks)
        ]

    def begin(self) -> float | None:
        """Pass the gate; return the time, or None if the gate is closed."""
        with self._lock:
            if not self.gate.is_set():
                return None
            self._under_way += 1
        return time.monotonic()

    def end(self, who: str, plan: _Plan, started: float, answer: _Answer) -> None:
        """Record a write and its outcome."""
        ended = time.monotonic()
        outcome = "committed" if answer.outcome == "done" and not plan.wait else answer.outcome
        self._recorder.add(
            Write(
                writer=who,
                key=f"{plan.project}/{environment_of(plan.key)}/{plan.key}",
                token=plan.token,
                digest=_digest(plan.token),
                started=started,
                ended=ended,
                outcome=outcome,
                revision=answer.revision,
                existed=answer.existed,
                effective_s=answer.effective_s,
                detail=answer.detail,
            )
        )
        with self._lock:
            self._under_way -= 1

    def pause(self) -> bool:
        """Start no more writes, and wait for the others; return whether they returned."""
        with self._lock:
            self.gate.clear()
        deadline = time.monotonic() + _QUIET_WITHIN_S
        while time.monotonic() < deadline:
            with self._lock:
                if not self._under_way:
                    self._recorder.flush()
                    return True
            time.sleep(0.01)
        faulthandler.dump_traceback()
        return False


def _answer_of(result: Session | Deletion | BulkResult) -> _Answer:
    effect = result.effect
    assert effect is not None, "a write returns its effect"
    if isinstance(result, Session):
        return _Answer("done", result.revision, None, effect.effective_s)
    if isinstance(result, BulkResult):
        # It looks for sessions before it deletes them, so no revision says when there was none.
        return _Answer("done", 0, None, effect.effective_s)
    return _Answer("done", effect.revision, result.existed, effect.effective_s)


def _failure_of(error: SessionStoreError) -> _Answer:
    if isinstance(error, NotEffectiveError):
        return _Answer("committed", error.revision or 0, detail=str(error))
    if isinstance(error, OutcomeUnknownError):
        return _Answer("unknown", detail=str(error))
    if isinstance(error, StoreUnavailableError):
        return _Answer("failed", detail=str(error))
    raise error


def _write_in_threads(writer: _Writer, attempt: Callable[[_Plan, int], tuple[str, _Answer]]) -> None:
    """Start a thread for each task; `attempt` makes one write and returns its writer."""

    def work(number: int, author: _Author) -> None:
        while True:
            plan = author.choose()
            while (started := writer.begin()) is None:
                writer.gate.wait()
            who, answer = attempt(plan, number)
            writer.end(f"{author.name}{who}", plan, started, answer)
            time.sleep(author.pause_s())

    for number, author in enumerate(writer.authors):
        threading.Thread(target=_or_die(work), args=(number, author), daemon=True).start()


def _use_sync_store(writer: _Writer) -> None:
    settings = writer.settings
    stores = {name: settings.store(name) for name in (MAIN, BRIEF)}

    def attempt(plan: _Plan, _number: int) -> tuple[str, _Answer]:
        name = environment_of(plan.key)
        environment = stores[name].environment(plan.project, name)
        try:
            if plan.token:
                return "", _answer_of(environment.put(plan.key, replace=plan.replace, wait=plan.wait, **plan.patch()))
            if plan.by_prefix:
                return "", _answer_of(environment.delete_prefix(plan.key, wait=plan.wait))
            return "", _answer_of(environment.delete(plan.key, wait=plan.wait))
        except SessionStoreError as exc:
            return "", _failure_of(exc)

    _write_in_threads(writer, attempt)


def _use_async_store(writer: _Writer) -> None:
    settings = writer.settings

    async def work(author: _Author, stores: dict[str, AsyncSessionStore]) -> None:
        while True:
            plan = author.choose()
            while (started := writer.begin()) is None:
                await asyncio.to_thread(writer.gate.wait)
            name = environment_of(plan.key)
            environment = stores[name].environment(plan.project, name)
            try:
                if plan.token:
                    answer = _answer_of(
                        await environment.put(plan.key, replace=plan.replace, wait=plan.wait, **plan.patch())
                    )
                elif plan.by_prefix:
                    answer = _answer_of(await environment.delete_prefix(plan.key, wait=plan.wait))
                else:
                    answer = _answer_of(await environment.delete(plan.key, wait=plan.wait))
            except SessionStoreError as exc:
                answer = _failure_of(exc)
            writer.end(author.name, plan, started, answer)
            await asyncio.sleep(author.pause_s())

    async def work_all() -> None:
        stores = {name: settings.async_store(name) for name in (MAIN, BRIEF)}
        await asyncio.gather(*(work(author, stores) for author in writer.authors))

    threading.Thread(target=_or_die(lambda: asyncio.run(work_all())), daemon=True).start()


def _use_gateways(writer: _Writer) -> None:
    settings = writer.settings
    places = [urlsplit(url).netloc for url in settings.urls]
    connections: dict[int, http.client.HTTPConnection] = {}

    def attempt(plan: _Plan, number: int) -> tuple[str, _Answer]:
        gateway = number % len(places)
        connection = connections.get(number)
        if connection is None:
            connection = http.client.HTTPConnection(places[gateway], timeout=_HTTP_TIMEOUT_S)
        try:
            answer = _request(connection, settings.api_key, plan)
        except ConnectionRefusedError as exc:
            answer = _Answer("failed", detail=str(exc))
        except (OSError, http.client.HTTPException) as exc:
            answer = _Answer("unknown", detail=repr(exc))
        else:
            connections[number] = connection
            return f"@{settings.gateways[gateway]}", answer
        connection.close()
        connections.pop(number, None)
        return f"@{settings.gateways[gateway]}", answer

    _write_in_threads(writer, attempt)


def _request(connection: http.client.HTTPConnection, api_key: str, plan: _Plan) -> _Answer:
    place = f"project={plan.project}&environment={MAIN}"
    path = f"/api/v1/sessions/{plan.key}?{place}"
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    if not plan.wait:
        headers["Prefer"] = "respond-async"
    if plan.token:
        mode = "replace" if plan.replace else "merge"
        connection.request("PUT", f"{path}&mode={mode}", msgspec.json.encode(SessionPatch(**plan.patch())), headers)
    elif plan.by_prefix:
        connection.request("DELETE", f"/api/v1/sessions?{place}&prefix={plan.key}&mode=delete", headers=headers)
    else:
        connection.request("DELETE", f"{path}&mode=delete", headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    if response.status == 200:
        revision = int((response.getheader("ETag") or "0").strip('"'))
        effective = _EFFECTIVE.search(response.getheader("Server-Timing") or "")
        return _Answer("done", revision, effective_s=float(effective[1]) / 1000 if effective else None)
    assert response.status == 503, f"the gateway answered {response.status} {text}"
    outcomes: dict[str, Outcome] = {"not_effective": "committed", "store_unavailable": "failed"}
    return _Answer(outcomes.get(json.loads(text)["code"], "unknown"), detail=text)


def _or_die(work: Callable[..., None]) -> Callable[..., None]:
    """An error in a thread ends the process: the run must not continue without the thread."""

    def guarded(*arguments: Any) -> NoReturn:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    return guarded


def main() -> None:
    settings = read_settings()
    recorder = settings.recorder()
    watch_for_stalls(settings.name, recorder)
    writer = _Writer(settings, recorder)
    {"sync": _use_sync_store, "asyncio": _use_async_store, "http": _use_gateways}[settings.kind](writer)

    def resume(_order: dict[str, Any]) -> None:
        writer.gate.set()

    obey({"pause": lambda _order: writer.pause(), "resume": resume})
    writer.pause()
    recorder.close()
    os._exit(0)


if __name__ == "__main__":
    main()
