"""Every command of README.md and docs/ runs in bash as printed, with the services that its page needs.

Only ports and the address of Redis are put in their place. A command that serves runs in the background, until the page
ends or until another one serves on its port. `NOT_RUN` lists the commands that can't run here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.checkout import ROOT, copy_tree, make_python
from ..support.mitmproxy import require_mitmdump
from ..support.pages import shown_file
from ..support.reader import Reader
from ..support.redis_server import RedisServer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Seconds; installing packages takes most of them.
PATIENCE_S = 150

#: Programs whose calls are commands.
PROGRAMS = (
    "curl|docker|git|gunicorn|make|mitmdump|nginx|openssl|pip|promtool|python3?|redis-cli|redis-server|sessionstore|"
    "uvicorn"
)

#: Commands that don't end, and the port on which each serves.
SERVERS = {
    "sessionstore serve": 8080,
    "python -m gateway": 8080,
    "uvicorn": 8081,
    "gunicorn": 8082,
    "python examples/threaded_proxy.py": 8082,
    "mitmdump": 8080,
    "redis-server": 6379,
}

#: Commands that run nowhere here: how they begin, and what checks them instead.
NOT_RUN = {
    "git clone": "tests/examples/test_first_hour.py runs it, with the two after it, in an empty folder",
    "make run": "tests/examples/test_first_hour.py runs it",
    "make bench": "takes half an hour; tests/benchmarks runs each benchmark, and `make --dry-run` must accept it",
    "make soak": "takes an hour; tests/faults runs the checker, and `make --dry-run` must accept it",
    "make test": "runs this test; `make --dry-run` must accept it",
    "make check": "runs before this test; `make --dry-run` must accept it",
    "curl --http2": "a client that a sentence names",
    "sessionstore watch": "doesn't end; tests/cli runs it",
}

#: What the reader of a page has set before. Two pages say themselves what to set.
VARIABLES = {
    "SESSIONSTORE_REDIS_URL": "redis://localhost:6379/0",
    "SESSIONSTORE_PROJECT": "checkout",
    "SESSIONSTORE_ENVIRONMENT": "staging",
}
WITHOUT_VARIABLES = ("README.md", "cli.md")

#: What the commands print, among other things.
PRINTED = {"README.md": ['{"error":"The card is declined."}', '{"ok":true,"mode":"delete"}']}

#: Starts a command in the background, and returns when it listens.
SERVE = """
declare -A served
serve() {
    local port=$1; shift
    stop "$port"
    "$@" >"$port.log" 2>&1 & served[$port]=$!
    until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        kill -0 "${served[$port]}" 2>/dev/null || { cat "$port.log" >&2; exit 1; }
        sleep 0.05
    done
}
stop() {
    [ -z "${served[$1]:-}" ] || { kill "${served[$1]}" || true; wait "${served[$1]}" || true; }
}
trap 'for port in "${!served[@]}"; do stop "$port"; done' EXIT
"""

#: A block of code with its language, or code in a sentence that is a command.
_CODE = re.compile(
    rf"^```(?P<language>\w*)\n(?P<block>.*?)^```$|`(?P<inline>(?:\w+=\$\()?(?:{PROGRAMS}) [^`]+)`",
    re.MULTILINE | re.DOTALL,
)
_CONSOLE = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def codes(page: Path) -> list[tuple[str, str]]:
    """The page's code, with its language, in order; without the blocks that show a file of examples/."""
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "examples").iterdir() if file.is_file()]
    found = [
        ("inline", match["inline"]) if match["inline"] else (match["language"], match["block"])
        for match in _CODE.finditer(page.read_text(encoding="utf-8"))
    ]
    return [(language, text) for language, text in found if text not in files]


def commands(page: Path) -> list[str]:
    """The page's commands; one that spans lines is several."""
    return [line for language, text in codes(page) if language in ("sh", "inline") for line in text.splitlines()]


def script_of(page: Path, reader: Reader) -> str:
    """What of a page can run here, as one script; the output that a console shows is compared."""
    script = []
    for language, text in codes(page):
        if language == "console":
            for command, output in _CONSOLE.findall(text):
                script.append(f"diff <({command}) - <<'OUTPUT'\n{output}OUTPUT")
        elif language in ("sh", "inline") and not text.startswith(tuple(NOT_RUN)):
            script += [runnable(line.replace(" FILE", " examples/catalog.toml"), reader) for line in text.splitlines()]
    return "\n".join(script)


def runnable(command: str, reader: Reader) -> str:
    """A line of a page as it can run here: a server runs in the background."""
    for beginning, port in SERVERS.items():
        if command.startswith(beginning):
            command = command.replace("redis-server ", f"redis-server --port {port} --dir . ")
            return f"serve {reader.ports[port]} {command}"
    return command


@pytest.fixture
def reader(own_redis: RedisServer, tmp_path: Path) -> Iterator[Reader]:
    copy_tree(tmp_path)
    with Reader(tmp_path, own_redis.url) as reader:
        yield reader


@pytest.mark.timeout(PATIENCE_S + 30)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_run(page: Path, reader: Reader, tmp_path: Path) -> None:
    # Given: what the reader has.
    script = script_of(page, reader)
    unset = page.name in WITHOUT_VARIABLES
    variables = {name: "" if unset else reader.placed(value) for name, value in VARIABLES.items()}
    if page.name == "operations.md":
        variables["SESSIONSTORE_REDIS_URL"] = ""
    if page.name == "api.md":
        # An HTTP error fails the command.
        (reader.folder / ".curlrc").write_text("fail-with-body\n", encoding="utf-8")
        variables["CURL_HOME"] = str(reader.folder)
        variables["KEY"] = reader.run("sessionstore keys create ci --project checkout").strip()
        reader.run("sessionstore catalog apply examples/catalog.toml")
        reader.serve(8080, "sessionstore serve")
    elif page.name == "troubleshooting.md":
        reader.run("sessionstore catalog apply examples/catalog.toml")
        reader.run("sessionstore put ci-42 -p checkout -e staging")
    elif page.name == "proxies.md":
        (reader.folder / "gunicorn.conf.py").write_text(shown_file(page.name, "gunicorn.conf.py"), encoding="utf-8")
        settings = reader.folder / ".mitmproxy" / "config.yaml"
        settings.parent.mkdir()
        settings.write_text(f"listen_host: 127.0.0.1\nlisten_port: {reader.ports[8080]}\n", encoding="utf-8")
        variables["HOME"] = str(reader.folder)
        variables["PATH"] = f"{reader.environ['PATH']}{os.pathsep}{require_mitmdump().parent}"
    if "pip install" in script:
        # The page installs what it needs.
        variables["PATH"] = f"{make_python(tmp_path / 'python')}{os.pathsep}{os.environ['PATH']}"

    # When: the commands run, then none of them fails, and they show what the page promises.
    printed = reader.run(SERVE + script, within_s=PATIENCE_S, **variables)
    assert all(words in printed for words in PRINTED.get(page.name, ()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_blocks_that_say_so(page: Path) -> None:
    for language, text in codes(page):
        if language not in ("sh", "console", "inline"):
            assert re.search(rf"^(\$ |export |(?:{PROGRAMS}) )", text, re.MULTILINE) is None, text


@pytest.mark.parametrize("beginning", NOT_RUN)
def test_what_is_not_run_is_on_a_page_and_make_knows_it(beginning: str) -> None:
    found = [command for page in PAGES for command in commands(page) if command.startswith(beginning)]
    assert found
    for command in found:
        if command.startswith("make "):
            dry = command.replace("make ", "make --dry-run ", 1)
            subprocess.run(["bash", "-euc", dry], cwd=ROOT, capture_output=True, check=True, timeout=60)
