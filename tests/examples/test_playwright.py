"""The Playwright fixture in TypeScript, with the real test runner and a real Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sessionstore import SessionStore

from ..support.browser import VISIT, check_visit, require_chromium
from ..support.checkout import ROOT, require_program
from ..support.origin import Origin
from ..support.reader import Reader
from ..support.redis_server import RedisServer
from .test_examples import PROXIES, await_view

EXAMPLE = ROOT / "examples" / "playwright"
#: Installed once, for all runs in this checkout.
INSTALLED = ROOT / "build" / "playwright"

#: A page of a named origin that calls itself and a foreign one. Each records what it is sent.
ORIGINS = f"""
import {{ test }} from "./mock-session";

const own = process.env.OWN_URL!;
const foreign = process.env.FOREIGN_URL!;
test.use({{ mockOrigins: [`${{own}}/`] }});

test("only the named origin gets the header", async ({{ mockSession, page }}) => {{
  await page.goto(own);
  await page.evaluate({VISIT}, [own, foreign]);
  await page.goto(foreign);
  await page.evaluate((url) => fetch(url), `${{own}}/from-elsewhere`);
  await mockSession.on("ovr_extraMock");
  await mockSession.off("ovr_extraMock");
}});
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in a folder of its own, with its packages."""
    require_program("npm", "nodejs npm")
    wanted = (EXAMPLE / "package.json").read_text(encoding="utf-8")
    stamp = INSTALLED / "package.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted or not (INSTALLED / "node_modules").exists():
        shutil.rmtree(INSTALLED, ignore_errors=True)
        INSTALLED.mkdir(parents=True)
        stamp.write_text(wanted, encoding="utf-8")
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        environment = {**os.environ, "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1"}
        done = subprocess.run(command, cwd=INSTALLED, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(INSTALLED)
            raise AssertionError(f"npm install failed: {done.stdout}{done.stderr}")
    folder = tmp_path_factory.mktemp("playwright")
    for path in (*EXAMPLE.glob("*.ts"), *EXAMPLE.glob("*.json")):
        shutil.copy(path, folder)
    (folder / "origins.spec.ts").write_text(ORIGINS, encoding="utf-8")
    (folder / "node_modules").symlink_to(INSTALLED / "node_modules")
    return folder


def test_the_fixture_fits_on_a_page() -> None:
    assert len((EXAMPLE / "mock-session.ts").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.timeout(180)
def test_each_test_has_a_session_that_only_its_proxy_sees(suite: Path, own_redis: RedisServer, tmp_path: Path) -> None:
    # Given: a gateway and the README's proxy on a real Redis, and two more origins.
    chromium = require_chromium()
    with (
        Reader(tmp_path, own_redis.url) as reader,
        SessionStore.from_url(own_redis.url) as store,
        Origin() as own,
        Origin() as foreign,
    ):
        reader.run("sessionstore catalog apply examples/catalog.toml")
        key = reader.run("sessionstore keys create ci --project checkout").strip()
        reader.serve(8080, "sessionstore serve")
        reader.serve(8081, PROXIES[8081])
        staging = await_view(store)
        environment = {
            **os.environ,
            "CHROMIUM": chromium,
            "SESSIONSTORE_URL": reader.url(8080, ""),
            "SESSIONSTORE_API_KEY": key,
            "SESSIONSTORE_ENVIRONMENT": "staging",
            "PROXY_URL": reader.url(8081, ""),
            "OWN_URL": own.url,
            "FOREIGN_URL": foreign.url,
        }

        # When: the suite is type-checked and run.
        for command in (["npx", "tsc"], ["npx", "playwright", "test", "--reporter=line", "--workers=2"]):
            done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        # Then: the foreign server saw no session, and no session is left.
        assert "3 passed" in done.stdout
        seen = check_visit(own, foreign)
        assert own.at("/from-elsewhere").session_key == seen
        assert staging.list().sessions == ()
