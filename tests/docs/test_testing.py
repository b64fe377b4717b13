"""The examples of docs/testing.md and examples/ci/, with a gateway and a proxy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sessionstore import Environment, SessionStore

from ..examples.test_examples import PROXIES, await_view
from ..support.checkout import ROOT
from ..support.reader import Reader, blocks
from ..support.redis_server import RedisServer

PAGE = ROOT / "docs" / "testing.md"
RUN = "ci-4821-"

#: In place of a suite: it leaves a session, as one that is killed does.
LEAVES_A_SESSION = f"sessionstore put {RUN}left -p checkout -e staging"

#: Without the plugins that this run itself may have.
PYTEST = (
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTEST_ADDOPTS= "
    f"{sys.executable} -m pytest -p sessionstore.client.pytest_plugin -p xdist -p no:cacheprovider"
)


@pytest.fixture
def reader(own_redis: RedisServer, tmp_path: Path) -> Iterator[Reader]:
    with Reader(tmp_path, own_redis.url) as reader:
        reader.run("sessionstore catalog apply examples/catalog.toml")
        key = reader.run("sessionstore keys create ci --project checkout").strip()
        [exports] = blocks(PAGE, "sh")
        variables = dict(pair.split("=", 1) for pair in reader.placed(exports).split()[1:])
        reader.environ |= {**variables, "SESSIONSTORE_API_KEY": key, "RUN": RUN}
        reader.serve(8080, "sessionstore serve", SESSIONSTORE_API_KEY="")
        yield reader


@pytest.fixture
def staging(own_redis: RedisServer) -> Iterator[Environment]:
    with SessionStore.from_url(own_redis.url) as store:
        yield store.environment("checkout", "staging")


def test_the_python_example_runs_and_leaves_no_session(reader: Reader, staging: Environment) -> None:
    reader.serve(8081, PROXIES[8081])
    with SessionStore.from_url(reader.redis_url) as store:
        await_view(store)
    example = blocks(PAGE, "python")[0]
    (reader.folder / "example.py").write_text(reader.placed(example), encoding="utf-8")
    reader.run(f"{sys.executable} example.py")
    assert staging.list().sessions == ()


@pytest.mark.parametrize("workers", ["", "-n 2"], ids=["alone", "xdist"])
def test_the_example_of_the_pytest_plugin_passes_and_leaves_no_session(
    workers: str, reader: Reader, staging: Environment
) -> None:
    # Given the page's test and its ini file, and a proxy
    _, example = blocks(PAGE, "python")
    [ini] = blocks(PAGE, "ini")
    (reader.folder / "test_example.py").write_text(reader.placed(example), encoding="utf-8")
    (reader.folder / "pytest.ini").write_text(ini, encoding="utf-8")
    reader.serve(8081, PROXIES[8081])
    with SessionStore.from_url(reader.redis_url) as store:
        await_view(store)

    # When real pytest runs it, in an environment that only the ini file names
    printed = reader.run(f"{PYTEST} {workers} test_example.py", SESSIONSTORE_ENVIRONMENT="")

    # Then it passes
    assert "1 passed" in printed
    assert staging.list().sessions == ()


def test_without_a_proxy_the_options_of_the_page_fail_the_example(reader: Reader, staging: Environment) -> None:
    _, example = blocks(PAGE, "python")
    (reader.folder / "test_example.py").write_text(reader.placed(example), encoding="utf-8")
    assert "`--mock-session-views=1`" in PAGE.read_text(encoding="utf-8")

    strict = reader.run(f"{PYTEST} --mock-session-views=1 test_example.py || true")
    lax = reader.run(f"{PYTEST} test_example.py || true")

    # Nobody serves the example's address: without the option, it is the request that fails.
    assert "1 error" in strict
    assert "1 failed" in lax
    assert "- mock session -" in lax
    assert "No proxy confirmed a write" in lax
    assert staging.list().sessions == ()


def github(recipe: Any) -> tuple[str, str]:
    tests, cleaning = recipe["steps"]
    # GitHub passes neither variables nor secrets of a repository to the steps by itself.
    assert recipe["env"]["SESSIONSTORE_URL"] == "${{ vars.SESSIONSTORE_URL }}"
    assert recipe["env"]["SESSIONSTORE_API_KEY"] == "${{ secrets.SESSIONSTORE_API_KEY }}"
    assert cleaning["if"] == "always()"
    return tests["run"], cleaning["run"]


def gitlab(recipe: Any) -> tuple[str, str]:
    [tests], [cleaning] = recipe["test"]["script"], recipe["test"]["after_script"]
    return tests, cleaning


@pytest.mark.parametrize("read", [github, gitlab])
def test_the_recipe_deletes_what_a_killed_run_left(read: Any, reader: Reader, staging: Environment) -> None:
    recipe = ROOT / "examples" / "ci" / f"{read.__name__}.yaml"
    tests, cleaning = read(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    assert tests == "pytest"
    staging.put("ci-4822-of-another-run")
    reader.run(LEAVES_A_SESSION)
    assert len(staging.list().sessions) == 2

    reader.run(cleaning)

    assert [session.session_key for session in staging.list().sessions] == ["ci-4822-of-another-run"]
