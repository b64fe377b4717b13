"""Where Chromium is, and what a page does there to tell origins apart."""

from __future__ import annotations

from .checkout import require_program
from .origin import Origin

__all__ = ["VISIT", "check_visit", "require_chromium"]

#: Run in a page of the first origin's: calls it, and then the second one.
VISIT = """async ([own, foreign]) => {
    await fetch(`${own}/plain`);
    await fetch(`${own}/post`, {method: "POST", body: "paid=1"});
    await fetch(`${foreign}/plain`);
    await new Promise((resolve, reject) => {
        const socket = new WebSocket(`${own.replace("http", "ws")}/socket`);
        socket.onmessage = resolve;
        socket.onerror = () => reject(new Error("no websocket"));
    });
}"""


def require_chromium() -> str:
    """The path of an installed Chromium; without it the test is skipped, or fails under CI=true."""
    return require_program("chromium", "chromium")


def check_visit(own: Origin, foreign: Origin) -> str:
    """Check what the origins saw of `VISIT`; returns the session key that the first one saw."""
    plain, post = own.at("/plain"), own.at("/post")
    assert plain.session_key is not None
    assert post.session_key == plain.session_key
    assert (plain.cookie, post.cookie, post.body) == ("basket=7", "basket=7", "paid=1")
    assert own.at("/socket").cookie == "basket=7"
    assert foreign.at("/plain").method == "GET"
    assert {request.session_key for request in foreign.seen if request.path != "/by-redirect"} == {None}
    # Simple requests of pages elsewhere stay simple: a header of their own would need a preflight.
    assert "OPTIONS" not in {request.method for request in own.seen + foreign.seen}
    return plain.session_key
