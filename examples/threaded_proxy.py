"""A threaded proxy. To run it: python examples/threaded_proxy.py"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sessionstore import SessionStore

REDIS = os.environ.get("SESSIONSTORE_REDIS_URL", "redis://localhost:6379/0")
MOCKS = {"ovr_cardDeclined": (b'{"error":"The card is declined."}', 402)}
STAGING = (b'{"paid":true}', 200)  # a real proxy forwards the request to staging


class Proxy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        session = view.get_by_header(self.headers.get("x-flowmock-session"))
        mocks = view.catalog.active_mocks(session) if session and view.catalog else ()
        body, status = next((MOCKS[mock.id] for mock in mocks if mock.id in MOCKS), STAGING)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # closes the view, so that no write waits for its lease
with (
    SessionStore.from_url(REDIS) as store,
    # wait=False: serve requests even before Redis is there
    store.environment("checkout", "staging").view(wait=False) as view,
):
    ThreadingHTTPServer(("localhost", 8082), Proxy).serve_forever()
