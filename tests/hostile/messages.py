"""Forged messages on the channels of an environment: a fresh view shows what Redis holds, whatever it is told.

Forged messages are malformed, or do not continue the chain, or do so and are found out by the next write.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sessionstore import StaleView, View

from ..support.polling import eventually
from .world import PATIENCE_S, Client, World, in_parallel

__all__ = ["Forgery", "attack", "forgeries"]

_Message = dict[str, Any]


def _with(**fields: Any) -> Callable[[_Message], bytes]:
    return lambda message: json.dumps({**message, **fields}).encode()


def _moved(by: int) -> Callable[[_Message], bytes]:
    return lambda message: json.dumps({**message, "rev": message["rev"] + by}).encode()


def _without(name: str) -> Callable[[_Message], bytes]:
    return lambda message: json.dumps({key: value for key, value in message.items() if key != name}).encode()


def _inner(name: str, value: Any) -> Callable[[_Message], bytes]:
    def forge(message: _Message) -> bytes:
        inner = {**message["session"], name: value} if "session" in message else {name: value}
        return json.dumps({**message, "session": inner}).encode()

    return forge


_WRONG: tuple[Any, ...] = (None, -1, 1.5, 10**30, "x", True, [], {}, "\x00")
#: What is wrong with a message that would else continue the chain. 'nothing' does.
_FLAWS: dict[str, Callable[[_Message], bytes]] = {
    "nothing": _with(),
    "waits": _with(wait=True),
    **{f"rev {by:+}": _moved(by) for by in (-10, -1, 1, 10, 2**52)},
    **{f"{name}={value!r}": _with(**{name: value}) for name in ("rev", "prev", "id", "type", "epoch", "at", "wait")
       for value in _WRONG},
    **{f"no {name}": _without(name) for name in ("rev", "prev", "id", "type", "session", "sessionKey", "sessions")},
    **{f"session.{name}={value!r}": _inner(name, value) for name, value in itertools.product(
        ("sessionKey", "rev", "label", "overrides", "globalDelayMs", "expiresAt"), (None, -1, "x", [1], 10**30))},
    "empty": lambda message: b"",
    "null": lambda message: b"null",
    "deep": lambda message: json.dumps(message).encode()[:-1] + b',"more":' + b"[" * 100_000,
    "not UTF-8": lambda message: json.dumps(message).encode().replace(b"forged", b"\xff"),
    "large": _with(more="x" * 2_000_000),
}  # fmt: skip
_TYPES = ("set", "delete", "expiry", "catalog")


@dataclass(frozen=True)
class Forgery:
    """One message."""

    number: int
    channel: str
    type: str
    #: a key of `_FLAWS`, or a seed that decides which bytes are changed
    flaw: str | int


def forgeries(source: random.Random) -> list[Forgery]:
    """Each flaw in each type of message, random damage, and forged acknowledgements."""
    kinds: list[tuple[str, str, str | int]] = [
        *itertools.product(("changes",), _TYPES, _FLAWS),
        *(("changes", source.choice(_TYPES), source.randrange(2**32)) for _ in range(200)),
        *itertools.product(("applied",), ("",), _FLAWS),
    ]
    return [Forgery(number, *kind) for number, kind in enumerate(kinds)]


async def attack(world: World, inputs: Sequence[Forgery]) -> list[str]:
    """Publish each to a view; then a write that returns must be in effect, and nothing forged."""
    lanes = [list(inputs[i::_LANES]) for i in range(min(_LANES, len(inputs)))]

    async def one(lane: list[Forgery]) -> list[str]:
        project = f"forged{lane[0].number}"
        async with world.client() as client:
            with world.store() as store:
                view = store.environment(project, "staging").view(on_stale="raise")
                with contextlib.closing(await asyncio.to_thread(view.open)):
                    attacked = _Attacked(world, client, project, view)
                    for forgery in lane:
                        await attacked.suffer(forgery)
                    return await attacked.conclude()

    return await in_parallel(lanes, one)


#: Environments, each with a view, that are attacked at the same time.
_LANES = 16


class _Attacked:
    """An environment with one true session, and a view that forged messages reach."""

    def __init__(self, world: World, client: Client, project: str, view: View) -> None:
        self.wrong: list[str] = []
        self._world = world
        self._client = client
        self._project = project
        self._view = view
        #: what the view has shown, and what forged messages could make it show: those that continue the chain
        self._shown: list[tuple[str, bool]] = []
        self._possible: set[str] = set()
        view.subscribe(lambda key, session: self._shown.append((key, session is not None)))

    async def suffer(self, forgery: Forgery) -> None:
        """Publish one to the live view, and see that the next write takes effect."""
        await self._fresh()
        label = f"after {forgery.number}"
        self._publish(forgery)
        place = {"project": self._project, "environment": "staging"}
        answer = await self._client.put(place, "true", {"label": label})
        if answer.status != 200:
            self.wrong.append(f"{forgery}: the write was answered {answer.status} {answer.body!r}")
            return
        with contextlib.suppress(StaleView):
            session, forged = self._view.peek("true"), self._view.peek(f"forged-{forgery.number}")
            if session is None or session.label != label or forged is not None:
                self.wrong.append(f"{forgery}: a fresh view shows {session} and {forged}")

    async def conclude(self) -> list[str]:
        """See that the view has never shown what does not continue the chain; returns all that is wrong."""
        await self._fresh()
        shown = {key for key, exists in self._shown if key != "true" or not exists}
        return self.wrong + [f"the view showed a forged {key!r}" for key in shown - self._possible]

    async def _fresh(self) -> None:
        await eventually(lambda: self._view.fresh, "the view is fresh", PATIENCE_S)

    def _publish(self, forgery: Forgery) -> None:
        """Publish the message that would continue the chain, but for its flaw."""
        head = self._world.raw.hmget(self._world.key(self._project, "head"), "rev", "id", "epoch")
        rev, id_, epoch = ((value or b"").decode() for value in head)
        message = _message(forgery, int(rev or 0) + 1, id_, epoch, self._world.now_ms())
        if isinstance(forgery.flaw, str):
            payload = _FLAWS[forgery.flaw](message)
        else:
            payload = _damage(random.Random(forgery.flaw), json.dumps(message).encode())
        with contextlib.suppress(ValueError, RecursionError):
            sent = json.loads(payload)
            if isinstance(sent, dict) and (sent.get("rev"), sent.get("prev")) == (int(rev or 0) + 1, id_):
                session = sent.get("session")
                self._possible |= {"true"} if sent.get("type") != "set" else set()
                self._possible |= {str(session.get("sessionKey"))} if isinstance(session, dict) else set()
        self._world.raw.spublish(self._world.key(self._project, forgery.channel), payload)


def _message(forgery: Forgery, rev: int, prev: str, epoch: str, now: int) -> _Message:
    if forgery.channel == "applied":
        return {"rev": 2**40, "live": 1, "expired": 0, "epoch": "forged"}
    session = {
        "sessionKey": f"forged-{forgery.number}", "rev": rev, "label": "forged", "scenario": None,
        "overrides": ["ovr_forged"], "globalDelayMs": 1, "globalDelayMaxMs": 2, "createdAt": now, "lastSeenAt": now,
        "expiresAt": now + 3_600_000,
    }  # fmt: skip
    changes: dict[str, _Message] = {
        "set": {"type": "set", "session": session},
        "delete": {"type": "delete", "sessionKey": "true"},
        "expiry": {"type": "expiry", "sessions": [["true", now, now]]},
        "catalog": {"type": "catalog", "catalog": {"mocks": [], "scenarios": []}},
    }
    return {"rev": rev, "id": "forged", "prev": prev, "at": now, "epoch": epoch, **changes[forgery.type]}


def _damage(source: random.Random, payload: bytes) -> bytes:
    at = source.randrange(len(payload))
    end = at + source.randint(1, 12)
    return source.choice(
        (
            payload[:at] + bytes([source.randrange(256)]) + payload[at + 1 :],
            payload[:at] + payload[end:],
            payload[:end] + payload[at:],
            payload[:at],
            payload.replace(b":", source.choice((b": ", b":-", b":[", b"")), source.randint(1, 9)),
        )
    )
