"""The pytest plugin with pytest-playwright, on a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sessionstore import SessionStore
from sessionstore.client.browser import match_origins

from ..support.browser import VISIT, check_visit, require_chromium
from ..support.gateway import KEY
from ..support.gateway_process import GatewayProcess
from ..support.origin import Origin

PLUGINS = ("-p", "sessionstore.client.pytest_plugin", "-p", "no:cacheprovider", "-W", "error")
#: pytest 9 warns of how pytest-playwright declares a fixture.
PLAYWRIGHT = ("-p", "playwright", "-W", "ignore::pytest.PytestRemovedIn10Warning")

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    return {{**browser_type_launch_args, "executable_path": {chromium!r}, "args": ["--no-sandbox"]}}
"""

SUITE = f"""
import pytest

VISIT = '''{VISIT}'''

def test_visit(page):
    page.goto({{own!r}})
    page.evaluate(VISIT, [{{own!r}}, {{foreign!r}}])
    page.goto({{foreign!r}})
    page.evaluate("url => fetch(url)", {{own!r}} + "/from-elsewhere")

@pytest.mark.mock_session(scenario="scn_a")
def test_another_context(new_context, mock_session):
    other = new_context().new_page()
    other.goto({{own!r}} + "/" + mock_session.key)
    other.goto({{own!r}} + "/moved?" + {{foreign!r}} + "/by-redirect")
"""


@pytest.fixture
def origins() -> Iterator[tuple[Origin, Origin]]:
    with Origin() as own, Origin() as foreign:
        yield own, foreign


@pytest.mark.timeout(120)
def test_only_named_origins_see_the_session(
    pytester: pytest.Pytester,
    origins: tuple[Origin, Origin],
    gateway: GatewayProcess,
    store: SessionStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given: a suite whose pages call a proxied and a foreign origin.
    own, foreign = origins
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, value in {"URL": gateway.url, "API_KEY": KEY, "PROJECT": "checkout", "ENVIRONMENT": "staging"}.items():
        monkeypatch.setenv(f"SESSIONSTORE_{name}", value)
    pytester.makeconftest(CONFTEST.format(chromium=require_chromium()))
    source = SUITE.replace("{own!r}", repr(own.url)).replace("{foreign!r}", repr(foreign.url))
    pytester.makepyfile(test_suite=source)
    pytester.makeini(f"[pytest]\nmock_session_origins =\n    https://staging.example\n    {own.url}/\n")

    # When: it runs.
    result = pytester.runpytest_subprocess(*PLUGINS, *PLAYWRIGHT)

    # Then: each test's session went to the first origin only, and none is left.
    result.assert_outcomes(passed=2)
    key = check_visit(own, foreign)
    assert own.at("/from-elsewhere").session_key == key
    [another] = {seen.session_key for seen in own.seen} - {None, key}
    assert own.at(f"/{another}").session_key == another
    # And a redirect of that origin has taken it along, as docs/testing.md says.
    assert foreign.at("/by-redirect").session_key == another
    assert store.environment("checkout", "staging").list().sessions == ()


def test_without_pytest_playwright_the_setting_is_silent(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("import sys\ndef test_it(): assert 'playwright' not in sys.modules")
    pytester.runpytest_subprocess(*PLUGINS, "--mock-session-origins=https://a.example").assert_outcomes(passed=1)


def test_a_wrong_origin_ends_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_subprocess(*PLUGINS, *PLAYWRIGHT, "--mock-session-origins=staging.example")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*takes origins such as https://staging.example, not 'staging.example'*"])


@pytest.mark.parametrize(
    ("origin", "url", "matches"),
    [
        ("https://A.example", "https://a.example/pay", True),
        ("https://a.example:443/", "https://a.example/", True),
        ("http://a.example:8080", "http://a.example:8080/x", True),
        ("http://[::1]:80", "http://[::1]/x", True),
        ("https://a.example", "http://a.example/", False),
        ("https://a.example", "https://a.example.evil/", False),
        ("https://a.example", "https://axexample/", False),
        ("https://a.example", "https://evil/?https://a.example/", False),
        ("http://a.example", "http://a.example:81/", False),
        ("https://b.example https://a.example", "https://a.example/", True),
    ],
)
def test_an_origin_is_compared_whole(origin: str, url: str, matches: bool) -> None:
    assert bool(match_origins(origin).match(url)) == matches


@pytest.mark.parametrize("text", ["a.example", "ftp://a", "https://a/b", "https://a:x", "https://u@a", "https://a?b"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(pytest.UsageError, match="takes origins"):
        match_origins(text)
