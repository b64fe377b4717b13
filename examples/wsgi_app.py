"""A WSGI application with the middleware. docs/proxies.md says how to run it with gunicorn."""

import json
import os
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from sessionstore import SessionStore
from sessionstore.contrib.wsgi import SessionMiddleware

store = SessionStore.from_url(os.environ.get("SESSIONSTORE_REDIS_URL", "redis://localhost:6379/0"))
view = store.environment("checkout", "staging").view(wait=False)  # gunicorn.conf.py opens it in each worker


def pay(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    session = environ["sessionstore.session"]  # a Session, or None
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"session": session and session.session_key}).encode()]


app = SessionMiddleware(pay, view, delay=True)
