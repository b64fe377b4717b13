"""The whole system on this machine, without Redis. To run it: make run

It starts a gateway with an embedded store and the asyncio proxy, and applies the catalog. Then it shows the calls of a
CI run with their answers: a proxied request before the PUT, after it, and after the DELETE.
"""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sessionstore import SessionStore, parse_catalog_document

EXAMPLES = Path(__file__).parent
GATEWAY_PORT = os.environ.get("SESSIONSTORE_PORT") or "8080"
PROXY_PORT = os.environ.get("PROXY_PORT") or "8081"
PATIENCE_S = 30


def main(processes: ExitStack) -> None:
    key = "fmk_" + secrets.token_urlsafe(32)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SESSIONSTORE_")}

    def start(*command: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment | variables, stdout=subprocess.PIPE, text=True
        )
        processes.callback(process.wait)
        processes.callback(process.terminate)
        return process

    options = ("--embedded-socket", "--port", GATEWAY_PORT, "--log-level", "warning")
    gateway = start("gateway", *options, SESSIONSTORE_API_KEY=key)
    redis_url = read_redis_url(gateway)
    uvicorn = ("uvicorn", "--app-dir", str(EXAMPLES), "--log-level", "warning", "--port", PROXY_PORT)
    proxy = start(*uvicorn, "proxy:app", SESSIONSTORE_REDIS_URL=redis_url)
    with SessionStore.from_url(redis_url) as store:
        store.project("checkout").apply_catalog(
            parse_catalog_document((EXAMPLES / "catalog.toml").read_bytes(), "toml")
        )
        await_true(proxy, lambda: bool(store.environment("checkout", "staging").views()))
    await_true(proxy, lambda: listens(int(PROXY_PORT)))

    variables = {
        "KEY": key,
        "SESSION": f"http://localhost:{GATEWAY_PORT}/api/v1/sessions/ci-42?project=checkout&environment=staging",
        "PAY": f"http://localhost:{PROXY_PORT}/pay",
    }
    for name, value in variables.items():
        print(f"$ {name}='{value}'")
    pay = """curl -s "$PAY" -H 'x-flowmock-session: ci-42'"""
    call = """curl -s "$SESSION" -H "Authorization: Bearer $KEY" """
    content = """-H 'Content-Type: application/json' -d '{"scenario": "scn_paymentDeclined"}'"""
    for meaning, line in (
        ("The proxy passes a request on.", pay),
        ("CI sets the session's scenario.", f"{call}-X PUT {content}"),
        ("The mock is on, for this session alone.", pay),
        ("CI deletes the session.", f"{call.replace('$SESSION', '$SESSION&mode=delete')}-X DELETE"),
        ("The mock is off.", pay),
    ):
        answer = subprocess.run(["bash", "-c", line], env=environment | variables, stdout=subprocess.PIPE, check=True)
        print(f"\n# {meaning}\n$ {line}\n{answer.stdout.decode()}", flush=True)
    print("\nPaste the lines after $ into another terminal. For more proxies and the command line:")
    print(f"$ . '{sys.prefix}/bin/activate'")
    print(f"$ export SESSIONSTORE_REDIS_URL='{redis_url}'\nCtrl+C stops everything.", flush=True)
    gateway.wait()


def read_redis_url(gateway: subprocess.Popen[str]) -> str:
    """The URL that the gateway prints; if it can't start, it says why on standard error."""
    assert gateway.stdout is not None
    for line in gateway.stdout:
        if found := re.match(r"\s+Redis\s+(\S+)", line):
            return found[1]
    sys.exit(gateway.wait() or 1)


def await_true(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until the process has reached a condition; if it can't start, it says why on standard error."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(process.returncode or 1)
        time.sleep(0.05)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), 1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with ExitStack() as processes:
            main(processes)
    except KeyboardInterrupt:
        pass
