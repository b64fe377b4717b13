"""A process with views that looks sessions up without pause and records the answers.

For each environment of each project it has a strict view (``on_stale="raise"``), which is fresh if a look-up does not
raise, and a view that serves stale sessions. All look-ups run in one separate thread, so that they continue while the
event loop stalls.

Run by `world`: ``python -m tests.faults.checker.viewer SETTINGS``.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from sessionstore import Session, StaleView
from sessionstore.replica.view import BaseView

from .child import BRIEF, KEYS, MAIN, ChildSettings, obey, read_settings, watch_for_stalls
from .history import Looks, Recorder, Tally, digest_of

#: Look-ups in one burst, and seconds between two bursts.
_BURST = 24
_PAUSE_S = 0.002
#: The most seconds that one record of equal look-ups covers, and seconds between two flushes of the file.
_RUN_S = 0.05
_FLUSH_S = 0.1
#: Seconds between two reports of look-ups.
_TOUCH_INTERVAL_S = 0.4

#: A project and its environment.
_Place = tuple[str, str]


def digest_of_session(session: Session) -> str:
    return digest_of(
        session.label, session.scenario, session.overrides, session.global_delay_ms, session.global_delay_max_ms
    )


class _Run:
    """Consecutive look-ups with equal answers."""

    __slots__ = ("count", "first_began", "first_ended", "last_began", "last_began_ms", "last_ended", "session")

    def __init__(self, session: Session | None, began: float, ended: float, began_ms: float) -> None:
        self.session = session
        self.count = 1
        self.first_began = self.last_began = began
        self.first_ended = self.last_ended = ended
        self.last_began_ms = began_ms


class _Observer:
    """Looks up one view's sessions, by `get` or by `peek`."""

    def __init__(self, name: str, place: _Place, fresh: bool, look_up: Callable[[str | None], Session | None]) -> None:
        self.name = name
        self.fresh = fresh
        self._place = "/".join(place)
        self._look_up = look_up
        self._keys = KEYS[place[1]]
        self._runs: dict[str, _Run] = {}
        self._made = 0
        self._refused = 0

    def burst(self, rng: random.Random, recorder: Recorder) -> None:
        look_up, runs, clock = self._look_up, self._runs, time.monotonic
        ms_ahead = time.time() * 1000 - clock() * 1000
        for key in rng.choices(self._keys, k=_BURST):
            began = clock()
            try:
                session = look_up(key)
            except StaleView:
                self._refused += 1
                continue
            ended = clock()
            run = runs.get(key)
            if run is not None and run.session is session and ended - run.first_began < _RUN_S:
                run.count += 1
                run.last_began, run.last_ended, run.last_began_ms = began, ended, began * 1000 + ms_ahead
            else:
                if run is not None:
                    recorder.add(self._record(key, run))
                runs[key] = _Run(session, began, ended, began * 1000 + ms_ahead)
        self._made += _BURST

    def flush(self, recorder: Recorder) -> None:
        """Record the look-ups that are not recorded yet."""
        for key, run in self._runs.items():
            recorder.add(self._record(key, run))
        self._runs.clear()
        recorder.add(Tally(observer=self.name, made=self._made, refused=self._refused))
        self._made = self._refused = 0

    def _record(self, key: str, run: _Run) -> Looks:
        session = run.session
        return Looks(
            observer=self.name,
            fresh=self.fresh,
            key=f"{self._place}/{key}",
            revision=session.revision if session else 0,
            token=(session.label or "") if session else "",
            digest=digest_of_session(session) if session else "",
            expires_at=session.expires_at if session else 0,
            count=run.count,
            first_began=run.first_began,
            first_ended=run.first_ended,
            last_began=run.last_began,
            last_ended=run.last_ended,
            last_began_ms=run.last_began_ms,
        )


class _Viewer:
    """The observers of this process, and the thread of their look-ups."""

    def __init__(
        self, settings: ChildSettings, recorder: Recorder, views: dict[_Place, tuple[BaseView, BaseView]]
    ) -> None:
        self._recorder = recorder
        self._views = views
        self._rng = random.Random(f"{settings.seed}/{settings.name}")
        self._observers = []
        for place, (strict, serving) in views.items():
            where = "/".join((settings.name, *place))
            # `get` keeps a session of BRIEF alive; the sessions of `peek` expire.
            note = place[1] == MAIN
            self._observers += [
                _Observer(f"{where}/strict.get", place, True, strict.get if note else _get_some(strict)),
                _Observer(f"{where}/strict.peek", place, True, strict.peek),
                _Observer(f"{where}/serving.get", place, False, serving.get if note else _get_some(serving)),
            ]
        self._looking = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._look, name="look-ups", daemon=True).start()

    def pause(self, _order: dict[str, Any]) -> None:
        self._looking.clear()
        self._idle.wait(10)

    def resume(self, _order: dict[str, Any]) -> None:
        self._looking.set()

    def dump(self, _order: dict[str, Any]) -> dict[str, Any]:
        """The sessions of each environment's view, while look-ups are paused."""
        held: dict[str, Any] = {}
        for place, (strict, serving) in self._views.items():
            name = "/".join(place)
            stats = serving.stats
            sessions = {}
            for key in KEYS[place[1]]:
                session = serving.peek(key)
                if session is not None:
                    sessions[f"{name}/{key}"] = [session.revision, digest_of_session(session), session.expires_at]
            held[name] = {
                "revision": stats.revision,
                "fresh": stats.fresh and strict.fresh and serving.stats.revision == stats.revision,
                "sessions": sessions,
                "error": stats.last_error,
            }
        return held

    def _look(self) -> None:
        try:
            while True:
                self._looking.wait()
                self._idle.clear()
                flush_at = time.monotonic() + _FLUSH_S
                while self._looking.is_set():
                    for observer in self._observers:
                        observer.burst(self._rng, self._recorder)
                        time.sleep(_PAUSE_S)
                    if time.monotonic() >= flush_at:
                        self._flush()
                        flush_at = time.monotonic() + _FLUSH_S
                self._flush()
                self._idle.set()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _flush(self) -> None:
        for observer in self._observers:
            observer.flush(self._recorder)
        self._recorder.flush()


def _get_some(view: BaseView) -> Callable[[str | None], Session | None]:
    """Look up half of the keys by `get`, which keeps sessions alive, and half by `peek`."""
    kept = frozenset(KEYS[BRIEF][::2])

    def look_up(key: str | None) -> Session | None:
        return view.get(key) if key in kept else view.peek(key)

    return look_up


def _view_in_threads(settings: ChildSettings, recorder: Recorder) -> None:
    views: dict[_Place, tuple[BaseView, BaseView]] = {}
    for name in (MAIN, BRIEF):
        store = settings.store(name)
        for project in settings.projects:
            environment = store.environment(project, name)
            views[project, name] = (
                environment.view(on_stale="raise", wait=False, touch_interval_s=_TOUCH_INTERVAL_S).open(),
                environment.view(wait=False, touch_interval_s=_TOUCH_INTERVAL_S).open(),
            )
    viewer = _Viewer(settings, recorder, views)
    obey({"pause": viewer.pause, "resume": viewer.resume, "dump": viewer.dump})


async def _view_on_a_loop(settings: ChildSettings, recorder: Recorder) -> None:
    views: dict[_Place, tuple[BaseView, BaseView]] = {}
    for name in (MAIN, BRIEF):
        store = settings.async_store(name)
        for project in settings.projects:
            environment = store.environment(project, name)
            views[project, name] = (
                await environment.view(on_stale="raise", wait=False, touch_interval_s=_TOUCH_INTERVAL_S).open(),
                await environment.view(wait=False, touch_interval_s=_TOUCH_INTERVAL_S).open(),
            )
    viewer = _Viewer(settings, recorder, views)
    loop = asyncio.get_running_loop()

    def stall(order: dict[str, Any]) -> None:
        """Block the event loop."""
        done = threading.Event()

        def block() -> None:
            time.sleep(order["seconds"])
            done.set()

        loop.call_soon_threadsafe(block)
        done.wait(order["seconds"] + 10)

    await asyncio.to_thread(obey, {"pause": viewer.pause, "resume": viewer.resume, "dump": viewer.dump, "stall": stall})


def main() -> None:
    settings = read_settings()
    recorder = settings.recorder()
    watch_for_stalls(settings.name, recorder)
    if settings.kind == "asyncio":
        asyncio.run(_view_on_a_loop(settings, recorder))
    else:
        _view_in_threads(settings, recorder)
    recorder.close()
    os._exit(0)


if __name__ == "__main__":
    main()
