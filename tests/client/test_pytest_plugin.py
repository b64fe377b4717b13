"""The pytest plugin: real suites, run by real pytest, with and without pytest-xdist."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpcore  # noqa: F401  # httpx imports it late: a run in this process would drop it, and httpx keep its errors
import pytest

from sessionstore import SessionStore, View

from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.redis_server import free_port

#: Variables of the CI that these tests may run in.
CI = ("GITHUB_RUN_ID", "CI_JOB_URL", "BUILDKITE_BUILD_URL", "BUILD_URL")

EITHER = pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])

#: Plugins that slow workers down are left out.
OPTIONS = ("-p", "xdist", "-p", "sessionstore.client.pytest_plugin", "-p", "no:cacheprovider", "-W", "error")


class Suite:
    """A folder with a suite, and the gateway that it uses."""

    def __init__(self, pytester: pytest.Pytester, store: SessionStore) -> None:
        self.pytester = pytester
        self.staging = store.environment("checkout", "staging")

    def write(self, source: str) -> None:
        self.pytester.makepyfile(test_suite=source)

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run the suite in this process; a warning is an error."""
        return self.pytester.runpytest_inprocess(*OPTIONS, *arguments)

    def left(self) -> list[str]:
        """The keys of sessions that the suite has left."""
        return [session.session_key for session in self.staging.list(100).sessions]


@pytest.fixture
def suite(
    pytester: pytest.Pytester, gateway: GatewayProcess, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Suite]:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in CI:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"URL": gateway.url, "API_KEY": KEY, "PROJECT": "checkout", "ENVIRONMENT": "staging"}.items():
        monkeypatch.setenv(f"SESSIONSTORE_{name}", value)
    suite = Suite(pytester, store)
    yield suite
    for key in suite.left():
        suite.staging.delete(key)


def calls_of(log: str) -> list[tuple[str, str]]:
    """Method and route of each request in a gateway's log."""
    lines = map(json.loads, log.splitlines())
    return [(line["method"], line["route"]) for line in lines if line["logger"] == "gateway.access"]


@EITHER
def test_each_test_has_a_session_of_its_own(suite: Suite, gateway: GatewayProcess, workers: tuple[str, ...]) -> None:
    before = len(gateway.log)
    suite.write("""
        import pathlib, pytest

        @pytest.mark.parametrize("number", range(6))
        def test_own(mock_session, number):
            assert mock_session.get().label == f"test_suite.py::test_own[{number}]"
            mock_session.on(f"ovr_{number}")
            assert mock_session.get().overrides == (f"ovr_{number}",)
            assert mock_session.headers == {"x-flowmock-session": mock_session.key}
            pathlib.Path(f"{number}.key").write_text(mock_session.key)

        def test_without():
            pass
    """)
    result = suite.run(*workers)
    result.assert_outcomes(passed=7)
    keys = [path.read_text() for path in suite.pytester.path.glob("*.key")]
    assert len(set(keys)) == 6
    assert len({key[:20] for key in keys if re.match(r"pytest-[0-9a-f]{12}-", key)}) == 1
    assert suite.left() == []

    # The sessions of the whole run are deleted once: a worker that ends early must leave those of the others alone.
    assert calls_of(gateway.log[before:]).count(("DELETE", "/api/v1/sessions")) == 1

    # That no proxy confirmed a write is said once, not for each test or worker.
    assert result.stdout.str().count("No proxy confirmed") == 1
    result.stdout.fnmatch_lines(
        ["No proxy confirmed a write in 6 of 6 tests. Does a proxy run on checkout/staging? *--mock-session-views=1*"]
    )


def test_markers_say_what_is_set_and_the_nearest_wins(suite: Suite) -> None:
    suite.write("""
        import pytest

        pytestmark = pytest.mark.mock_session(scenario="scn_module", global_delay_ms=5)

        @pytest.mark.mock_session(label="class")
        class TestClass:
            @pytest.mark.mock_session(scenario=None, overrides=["ovr_a"], global_delay_max_ms=7)
            def test_method(self, mock_session):
                session = mock_session.state
                assert (session.scenario, session.overrides, session.label) == (None, ("ovr_a",), "class")
                assert (session.global_delay_ms, session.global_delay_max_ms) == (5, 7)

        def test_function(mock_session):
            assert mock_session.state.scenario == "scn_module"

        def test_without_the_fixture():
            pass
    """)
    suite.run("--strict-markers").assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ('scenari="scn_a"', "*takes these keyword arguments only: scenario, overrides*"),
        ('"scn_a"', "*takes these keyword arguments only: scenario, overrides*"),
        ('scenario="a"', "*mock_session: 'a' is not a scenario id*"),
    ],
)
def test_a_wrong_marker_fails_its_test_in_a_line(suite: Suite, marker: str, words: str) -> None:
    suite.write(f"""
        import pytest

        @pytest.mark.mock_session({marker})
        def test_wrong(mock_session):
            pass

        def test_right(mock_session):
            pass
    """)
    result = suite.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([words])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*During handling*")


def test_a_marker_without_the_fixture_is_an_error(suite: Suite) -> None:
    suite.write("""
        import pytest

        @pytest.mark.mock_session(scenario="scn_a")
        def test_forgotten():
            pass
    """)
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*has the marker mock_session, but does not use the fixture*"])


def test_an_option_wins_over_the_ini_file_and_that_over_a_variable(suite: Suite, gateway: GatewayProcess) -> None:
    suite.write("""
        import os

        def test_environment(mock_session):
            assert mock_session.state.environment == os.environ["EXPECTED"]
    """)
    patch = pytest.MonkeyPatch()
    with patch.context() as environ:
        environ.setenv("SESSIONSTORE_URL", "http://127.0.0.1:1")
        environ.setenv("EXPECTED", "ini")
        suite.pytester.makeini(f"[pytest]\nmock_session_url = {gateway.url}\nmock_session_environment = ini")
        suite.run().assert_outcomes(passed=1)
        environ.setenv("EXPECTED", "option")
        suite.run("--mock-session-environment", "option").assert_outcomes(passed=1)


@pytest.mark.parametrize(("option", "value"), [("views", "many"), ("ttl", "59"), ("ttl", "soon")])
def test_a_number_out_of_its_bounds_is_a_usage_error(suite: Suite, option: str, value: str) -> None:
    result = suite.run(f"--mock-session-{option}", value)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--mock-session-{option} must be *"])


def test_a_test_costs_a_put_and_a_delete_and_the_run_one_more_delete(suite: Suite, gateway: GatewayProcess) -> None:
    suite.write("""
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_empty(mock_session, number):
            pass
    """)
    before = len(gateway.log)
    suite.run().assert_outcomes(passed=3)
    one = "/api/v1/sessions/{sessionKey}"
    assert calls_of(gateway.log[before:]) == [("PUT", one), ("DELETE", one)] * 3 + [("DELETE", "/api/v1/sessions")]


@EITHER
def test_sessions_of_failed_tests_are_deleted(suite: Suite, workers: tuple[str, ...]) -> None:
    suite.write("""
        import pytest

        @pytest.fixture
        def broken(mock_session):
            raise ValueError

        @pytest.fixture
        def broken_at_the_end(mock_session):
            yield
            raise ValueError

        def test_call(mock_session):
            assert 0

        def test_setup(broken):
            pass

        def test_teardown(broken_at_the_end):
            pass
    """)
    result = suite.run(*workers)
    result.assert_outcomes(failed=1, errors=2, passed=1)
    assert suite.left() == []
    # Each has the section.
    assert result.stdout.str().count("- mock session -") == 3


MANY = """
    import pytest

    @pytest.mark.parametrize("number", range(100))
    def test_many(mock_session, number):
        pass
"""


def test_no_gateway_is_one_error_for_the_run(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSIONSTORE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("sessionstore.client.failures._RESTART_S", 0.0)
    suite.write(MANY)
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.fnmatch_lines(["!*mock_session: The gateway at http://127.0.0.1:* can't be reached: *"])


def test_a_refused_api_key_is_one_error_for_each_worker(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSIONSTORE_API_KEY", "fmk_" + "o" * 43)
    suite.write(MANY)
    result = suite.run("-n", "2")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert 1 <= result.parseoutcomes()["errors"] <= 2
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.fnmatch_lines(["!*mock_session: The API key is malformed, unknown, revoked or expired*"])


def test_a_missing_setting_is_one_error_for_the_run(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSIONSTORE_API_KEY")
    suite.write("""
        def test_one(mock_session):
            pass

        def test_two(mock_session):
            pass
    """)
    result = suite.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["!*mock_session: No API key is given*SESSIONSTORE_API_KEY*"])


def test_a_write_that_no_proxy_confirmed_can_be_an_error(suite: Suite) -> None:
    suite.write("""
        def test_unconfirmed(mock_session):
            pass
    """)
    result = suite.run("--mock-session-views=1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["mock_session: *The state is set*"])
    assert suite.left() == []

    with suite.staging.view():
        result = suite.run("--mock-session-views=1")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*No proxy confirmed*")


def test_the_report_names_the_run_that_overwrote_the_session(suite: Suite, store: SessionStore) -> None:
    # Given the API key of another run, and a proxy
    nightly = store.api_keys.create("nightly", project="checkout")
    suite.write(f"""
        from sessionstore.client import SessionClient

        def test_overwritten(mock_session):
            mock_session.on("ovr_a")
            with SessionClient(api_key="{nightly.secret}") as other:
                other.put(mock_session.key, scenario="scn_b", label="nightly https://ci.example/42")
            assert mock_session.get().scenario is None
    """)
    before = datetime.now(UTC)
    with suite.staging.view():
        result = suite.run()
    result.assert_outcomes(failed=1)
    [last_write] = re.findall(r"^last write: (.*)$", result.stdout.str(), re.MULTILINE)
    when, by = last_write.split(" by ", 1)
    assert before - timedelta(seconds=1) < datetime.fromisoformat(when) < datetime.now(UTC) + timedelta(seconds=1)
    assert by == f"nightly ({nightly.key.id}), as 'nightly https://ci.example/42'"
    result.stdout.fnmatch_lines(
        [
            "session:    pytest-*-1 on checkout/staging",
            "set:        no scenario; overrides ovr_a; label 'test_suite.py::test_overwritten'",
            "now:        scenario scn_b; *; label 'nightly https://ci.example/42'; this test has not set that",
            "looked up:  by no proxy: *x-flowmock-session*",
            "confirmed:  by 1 view",
            "more:       sessionstore watch --project checkout --environment staging",
        ]
    )


def test_the_report_says_if_a_proxy_has_looked_the_session_up(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessionstore.client.pytest_plugin._LOOK_UP_S", 20.0)  # it ends when the proxy has told
    suite.write("""
        import os, pathlib, time

        def test_used(mock_session):
            pathlib.Path("key").write_text(mock_session.key)
            while not os.path.exists("used"):
                time.sleep(0.01)
            assert 0
    """)
    folder = suite.pytester.path

    def use(view: View) -> None:
        while not (folder / "key").exists() or view.get((folder / "key").read_text()) is None:
            time.sleep(0.01)
        (folder / "used").touch()

    with suite.staging.view() as view:
        proxy = threading.Thread(target=use, args=(view,))
        proxy.start()
        result = suite.run()
        proxy.join()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["looked up:  by a proxy, 20*"])


def test_the_report_names_the_environment_that_the_proxy_listens_on(suite: Suite, store: SessionStore) -> None:
    # Given a project with two environments, and a proxy on the one that the suite does not use
    empty: dict[str, object] = {"mocks": [], "scenarios": []}
    store.project("search").apply_catalog({"project": "search", "environments": {"staging": empty, "uat": empty}})
    suite.write("""
        def test_unmocked(mock_session):
            assert 0
    """)
    with store.environment("search", "uat").view():
        for options in ((), ("--mock-session-views=1",)):
            result = suite.run("--mock-session-project=search", *options)
            assert result.ret == pytest.ExitCode.TESTS_FAILED
            result.stdout.fnmatch_lines(["*Other environments have live views: uat has 1 view.*"])
    result = suite.run("--mock-session-project=search")
    result.stdout.fnmatch_lines(
        [
            "confirmed:  by no view: no proxy on search/staging serves this session",
            "elsewhere:  No other registered environment of the project has a live view.",
            "more:       sessionstore views --project search --environment staging",
        ]
    )


def test_sessions_that_can_not_be_deleted_are_told_once(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessionstore.client.failures._RESTART_S", 0.0)
    suite.write("""
        import os, signal, socket
        import pytest

        @pytest.mark.parametrize("number", range(5))
        def test_the_gateway_dies(mock_session, number):
            os.kill(int(os.environ["GATEWAY"]), signal.SIGKILL)
            with pytest.raises(OSError):
                while True:  # until its port is closed
                    socket.create_connection(("127.0.0.1", int(os.environ["PORT"]))).close()
            assert 0
    """)
    with GatewayProcess(None, SESSIONSTORE_API_KEY=KEY) as dying:
        monkeypatch.setenv("SESSIONSTORE_URL", dying.url)
        monkeypatch.setenv("GATEWAY", str(dying.pid))
        monkeypatch.setenv("PORT", str(dying.port))
        result = suite.run()
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "now:        not known: The gateway at http://127.0.0.1:* can't be reached: *",
            "elsewhere:  Whether other environments have live views is not known.",
            "Sessions may remain until they expire; their keys begin with pytest-*-: The gateway at *",
            "!*mock_session: The gateway at *",
        ]
    )


def test_a_session_outlives_the_time_out_of_its_test(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("""
        import pytest

        def seconds(mock_session):
            session = mock_session.get()
            return (session.expires_at - session.last_seen_at) / 1000

        def test_default(mock_session, pytestconfig):
            assert seconds(mock_session) == pytestconfig.getini("expected")

        @pytest.mark.timeout(5000)
        def test_marker(mock_session):
            assert seconds(mock_session) == 6000

        @pytest.mark.timeout(timeout=0)
        def test_endless(mock_session):
            assert seconds(mock_session) in (3600, 120)

        @pytest.mark.mock_session(ttl_seconds=60)
        def test_own(mock_session):
            assert seconds(mock_session) == 60
    """)
    suite.pytester.makeconftest("def pytest_addoption(parser): parser.addini('expected', '', type='int')")
    for options, ini, variable, expected in [
        ((), "", "", 3600),
        (("--mock-session-ttl=2m",), "", "", 120),
        (("--timeout=4000",), "", "", 4800),
        ((), "timeout = 4000", "", 4800),
        ((), "", "4000", 4800),
    ]:
        suite.pytester.makeini(f"[pytest]\nexpected = {expected}\n{ini}")
        with monkeypatch.context() as patch:
            if variable:
                patch.setenv("PYTEST_TIMEOUT", variable)
            suite.run("-p", "pytest_timeout", *options).assert_outcomes(passed=4)


def test_without_pytest_timeout_a_session_lives_an_hour(suite: Suite) -> None:
    suite.write("""
        def test_default(mock_session):
            session = mock_session.get()
            assert session.expires_at - session.last_seen_at == 3_600_000
    """)
    suite.run().assert_outcomes(passed=1)


def test_a_suite_that_does_not_use_it_pays_for_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing_is_imported(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("mock_session"), "by its entry point"
            assert not {"httpx", "msgspec", "redis", "sessionstore.session"} & set(sys.modules)
    """)
    others = ("anyio", "asyncio", "hypothesispytest", "schemathesis")
    options = [option for name in others for option in ("-p", f"no:{name}")]
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


def test_without_httpx_only_the_fixture_complains(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile("""
        def test_other():
            pass

        def test_fixture(mock_session):
            pass
    """)
    program = "import sys; sys.modules['httpx'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    result = pytester.run(
        sys.executable,
        "-c",
        program,
        "-p",
        "no:asyncio",
        "-p",
        "no:schemathesis",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*The HTTP client needs httpx: pip install 'sessionstore?client?'*"])
