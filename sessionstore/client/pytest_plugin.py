"""A pytest plugin: the fixture `mock_session`, a session of its own for each test.

::

    @pytest.mark.mock_session(scenario="scn_paymentDeclined")
    def test_a_declined_payment(mock_session):
        response = httpx.get("http://localhost:8081/pay", headers=mock_session.headers)
        mock_session.on("ovr_extraMock")

An option wins over its line in the ini file, and that over its variable:

==========================  ========================  ========================  ====================================
option                      ini file                  variable                  default
==========================  ========================  ========================  ====================================
--mock-session-url          mock_session_url          SESSIONSTORE_URL          required
--mock-session-project      mock_session_project      SESSIONSTORE_PROJECT      the one that the API key is for
--mock-session-environment  mock_session_environment  SESSIONSTORE_ENVIRONMENT  the only one of the project
--mock-session-views        mock_session_views                                  0: no proxy has to confirm a write
--mock-session-ttl          mock_session_ttl                                    1h
--mock-session-origins      mock_session_origins                                none: browsers send no session
==========================  ========================  ========================  ====================================

With pytest-playwright and origins, each test that uses `page`, `context` or `new_context` has a session, and its
browser sends the header to these origins only.

The API key is in SESSIONSTORE_API_KEY only, because everyone on a machine can read a command line.

pytest imports this module wherever the library is installed. So httpx and msgspec are imported for the first test that
uses the fixture, and not before.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import (
    AccessDeniedError,
    InvalidInputError,
    InvalidQueryError,
    NotFoundError,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from ..variables import parse_seconds
from .ci import label_of

if TYPE_CHECKING:
    from ..session import Session
    from .sync import MockSession, SessionClient

#: How long a session lives after its last use, unless the time-out of its test is longer; and the least there is.
_TTL = "1h"
_MIN_TTL_S = 60
#: A session's life is exact to a tenth, and must outlast the test.
_TTL_PER_TIMEOUT = 1.2

#: Seconds within which a proxy tells which keys it looked up; it does so each second. And how many failed tests of a
#: process wait for it.
_LOOK_UP_S = 2.5
_MAX_WAITS = 5
#: Seconds that the report of a failed test may wait for one answer.
_REPORT_TIMEOUT_S = 5.0

_OPTIONS = {
    "url": "the gateway, as in http://localhost:8080; else SESSIONSTORE_URL",
    "project": "the project; else SESSIONSTORE_PROJECT, else the one that the API key is for",
    "environment": "the environment; else SESSIONSTORE_ENVIRONMENT, else the only one of the project",
    "views": "how many live proxies must confirm each write; default 0, and the summary tells if none did",
    "ttl": f"how long a session lives after its last use if nothing deletes it; default {_TTL}, at most the gateway's",
    "origins": "origins of proxies, to which browsers of pytest-playwright send the session: https://staging.example …",
}

_MARKER = (
    "mock_session(scenario, overrides, global_delay_ms, global_delay_max_ms, label, ttl_seconds): what the fixture "
    "mock_session sets. If two markers give the same argument, the one nearer to the test wins."
)

_RUN: pytest.StashKey[_Run] = pytest.StashKey()
_SESSION: pytest.StashKey[MockSession] = pytest.StashKey()

#: Errors that every further test would meet.
_OF_THE_RUN = (AccessDeniedError, InvalidQueryError, NotFoundError, StoreUnavailableError)


@pytest.fixture
def mock_session(request: pytest.FixtureRequest) -> Iterator[MockSession]:
    """A session for this test, set as the marker `mock_session` says, and deleted afterwards.

    Send `mock_session.headers` with each request to the proxy. `put`, `on` and `off` change the session; each returns
    when every live proxy serves the change. A proxy that runs in the test's own event loop can't serve it meanwhile:
    run it in a thread or a process.
    """
    with request.config.stash[_RUN].session(request.node) as session:
        yield session


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, and the same in the ini file."""
    group = parser.getgroup("mock_session", "mock sessions (sessionstore)")
    for name, meaning in _OPTIONS.items():
        metavar = {"views": "N", "ttl": "TIME"}.get(name, name.upper())
        group.addoption(f"--mock-session-{name}", metavar=metavar, help=meaning)
        parser.addini(f"mock_session_{name}", meaning)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and begin the run."""
    config.addinivalue_line("markers", _MARKER)
    config.stash[_RUN] = run = _Run(config)
    config.pluginmanager.register(run, "mock_session_run")
    origins = config.getoption("mock_session_origins") or config.getini("mock_session_origins")
    if origins and config.pluginmanager.hasplugin("playwright"):
        from . import browser

        # After pytest-playwright, so that this fixture wraps that plugin's.
        config.stash[browser.PROXIED] = browser.match_origins(origins)
        config.pluginmanager.register(browser, "mock_session_browser")


class _Run:
    """The state of one pytest process: pytest-xdist's controller, a worker, or the only process."""

    def __init__(self, config: pytest.Config) -> None:
        worker: Mapping[str, Any] | None = getattr(config, "workerinput", None)
        # How the session keys of the whole run begin.
        self._prefix: str = f"pytest-{secrets.token_hex(6)}-" if worker is None else worker["mock_session_prefix"]
        self._config = config
        self._worker = worker
        self._views = self._number_of_views()
        self._ttl_s = self._seconds_to_live()
        self._count = itertools.count(1)
        self._clients: dict[str, SessionClient] = {}
        self._waits = 0
        #: Node ids of the tests that used a session, and of those where no view confirmed a write.
        self._tests: set[str] = set()
        self._unconfirmed: set[str] = set()
        self._places: set[str] = set()
        self._left: SessionStoreError | None = None

    @contextmanager
    def session(self, item: pytest.Item) -> Iterator[MockSession]:
        """Set a session for a test, and delete it."""
        session = self._set(item)
        item.stash[_SESSION] = session
        yield session
        # If this fails, the end of the run deletes the session or reports it. No test waits for the proxies here.
        with suppress(SessionStoreError):
            self._client().delete(session.key, wait=False)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker of pytest-xdist how the session keys of the run begin."""
        node.workerinput["mock_session_prefix"] = self._prefix

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail a test that has the marker itself and does not use the fixture: nothing would be set."""
        marked = any(marker.name == "mock_session" for marker in item.own_markers)
        if marked and "mock_session" not in getattr(item, "fixturenames", ()):
            pytest.fail("This test has the marker mock_session, but does not use the fixture.", pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add to a report what the controller sums up, and why the test may have failed."""
        report = yield
        session = item.stash.get(_SESSION, None)
        if session is not None and session.state is not None:
            unconfirmed = any(effect.waited and not effect.confirmed for effect in session.effects)
            place = f"{session.state.project}/{session.state.environment}"
            vars(report)["mock_session"] = {"place": place, "unconfirmed": unconfirmed}
            if report.failed:
                from .failure_report import describe

                now = self._now(session) if report.when != "teardown" else None
                elsewhere = None if session.effects[-1].confirmed else self._elsewhere()
                report.sections.append(("mock session", describe(session.state, session.effects[-1], now, elsewhere)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Sum up in the controller, wherever the test ran."""
        told = vars(report).get("mock_session")
        if told is not None:
            self._tests.add(report.nodeid)
            self._places.add(told["place"])
            if told["unconfirmed"]:
                self._unconfirmed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """When all tests and workers have ended, delete the sessions that killed workers and interrupts have left.

        It comes before the summary is written.
        """
        try:
            return (yield)
        finally:
            try:
                if self._worker is None and self._tests:
                    while self._client().delete_prefix(self._prefix, wait=False).more:
                        pass
            except SessionStoreError as exc:
                self._left = exc
            finally:
                for client in self._clients.values():
                    client.close()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary of the whole run."""
        lines = []
        if self._unconfirmed:
            lines.append(
                f"No proxy confirmed a write in {len(self._unconfirmed)} of {len(self._tests)} tests. Does a proxy run "
                f"on {', '.join(sorted(self._places))}? --mock-session-views=1 makes it an error."
            )
        if self._left is not None:
            lines.append(f"Sessions may remain until they expire; their keys begin with {self._prefix}: {self._left}")
        if lines:
            terminalreporter.section("mock sessions", yellow=True)
            for line in lines:
                terminalreporter.write_line(line)

    def _set(self, item: pytest.Item) -> MockSession:
        try:
            return self._entered(item)
        except (SessionStoreError, ModuleNotFoundError) as exc:
            error = exc
        # Out of the handler, so that pytest shows no more than the message.
        message = f"mock_session: {error}"
        if isinstance(error, TooFewViewsError):
            from .failure_report import name_others

            message += f" {name_others(self._elsewhere())}"
        elif not self._clients or isinstance(error, _OF_THE_RUN):
            item.session.shouldfail = message
        pytest.fail(message, pytrace=False)

    def _entered(self, item: pytest.Item) -> MockSession:
        client = self._client()
        properties = {
            "label": label_of(item.nodeid, os.environ),
            "ttl_seconds": max(self._ttl_s, ceil(_timeout_s(item) * _TTL_PER_TIMEOUT)),
            **_marked(item),
        }
        worker = "" if self._worker is None else f"{self._worker['workerid']}-"
        key = f"{self._prefix}{worker}{next(self._count)}"
        return client.session(key, views=self._views, **properties).__enter__()

    def _now(self, session: MockSession) -> Session | SessionStoreError:
        """Read a session after its test has failed; wait until the proxies have told if they looked it up."""
        try:
            client = self._report_client()
            now = client.get(session.key)
            if session.effects[-1].confirmed and self._waits < _MAX_WAITS and not _looked_up(now):
                self._waits += 1
                until = time.monotonic() + _LOOK_UP_S
                while not _looked_up(now) and time.monotonic() < until:
                    time.sleep(0.1)
                    now = client.get(session.key)
            return now
        except SessionStoreError as exc:
            return exc

    def _elsewhere(self) -> Mapping[str, int] | None:
        """Count the live views of the project's other environments; None if the gateway does not tell."""
        try:
            return self._report_client().views().elsewhere
        except SessionStoreError:
            return None

    def _report_client(self) -> SessionClient:
        return self._client("report", timeout_s=_REPORT_TIMEOUT_S, retry_for_s=0.0)

    def _client(self, purpose: str = "tests", **options: Any) -> SessionClient:
        if purpose not in self._clients:
            from . import SessionClient

            options.update((name, self._setting(name)) for name in ("url", "project", "environment"))
            self._clients[purpose] = SessionClient(**options)
        return self._clients[purpose]

    def _setting(self, name: str) -> str | None:
        option = f"mock_session_{name}"
        return self._config.getoption(option) or self._config.getini(option) or None

    def _number_of_views(self) -> int:
        text = self._setting("views") or "0"
        if not (text.isascii() and text.isdigit()):
            raise pytest.UsageError(f"--mock-session-views must be a whole number, not {text!r}.")
        return int(text)

    def _seconds_to_live(self) -> int:
        try:
            return ceil(parse_seconds(self._setting("ttl") or _TTL, _MIN_TTL_S))
        except InvalidInputError as exc:
            raise pytest.UsageError(f"--mock-session-ttl {exc}") from None


def _marked(item: pytest.Item) -> dict[str, Any]:
    """The properties that a test's markers set."""
    from ..session import SessionPatch

    properties: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("mock_session"))):
        if marker.args or not marker.kwargs.keys() <= {*SessionPatch.__struct_fields__}:
            names = ", ".join(SessionPatch.__struct_fields__)
            pytest.fail(f"The marker mock_session takes these keyword arguments only: {names}.", pytrace=False)
        properties.update(marker.kwargs)
    return properties


def _looked_up(session: Session) -> bool:
    return session.details is not None and session.details.looked_up_at is not None


def _timeout_s(item: pytest.Item) -> float:
    """Seconds after which pytest-timeout ends a test; 0 if it never does."""
    if not any(map(item.config.pluginmanager.hasplugin, ("timeout", "pytest_timeout"))):
        return 0.0
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        value = marker.args[0] if marker.args else marker.kwargs.get("timeout")
    else:
        given = item.config.getoption("timeout"), os.environ.get("PYTEST_TIMEOUT"), item.config.getini("timeout")
        value = next((one for one in given if one is not None), None)
    return float(value or 0)
