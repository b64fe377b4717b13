"""Every kind of key on every project, method and route: nothing is read or written without the right to it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sessionstore.api_keys.model import generate_secret

from .http1 import Answer
from .world import AUTHORIZATION, World, in_parallel

__all__ = ["Attempt", "attack", "attempts"]

#: Projects with a catalog and a session that nobody may touch; its texts hold the project's mark.
_OWNED = ("alpha", "beta")
#: The project that a call names; none, or one that differs in case.
_NAMED = ("alpha", "beta", "gamma", "Alpha", "")

#: Keys by what they open: a project, '*' for all, '' for none.
_OPENS = {
    "none": "",
    "malformed": "",
    "unknown": "",
    "revoked": "",
    "expired": "",
    "alpha": "alpha",
    "alpha as Token": "alpha",
    "beta": "beta",
    "all": "*",
    "bootstrap": "*",
}
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")
_TAKES = {
    "session": ("GET", "HEAD", "PUT", "DELETE"),
    "override": ("POST", "DELETE"),
    "sessions": ("GET", "HEAD", "DELETE"),
    "scenarios": ("GET", "HEAD"),
    "views": ("GET", "HEAD"),
    "openapi.json": ("GET", "HEAD"),
}
_OPEN = ("openapi.json",)


@dataclass(frozen=True)
class Attempt:
    """One call with one key."""

    number: int
    key: str
    project: str
    method: str
    route: str
    #: what is sent where the key is malformed
    malformed: str

    @property
    def opened(self) -> str:
        """The project that the call may use; empty if none."""
        opens = _OPENS[self.key]
        if opens == "*":
            return self.project
        return opens if self.project in (opens, "") else ""

    @property
    def session(self) -> str:
        """A session of its own, or the one that must stay as it is."""
        return f"own-{self.number}" if self.opened else "kept"

    @property
    def expected(self) -> str:
        """The error code; empty for an answer that a key with the right to it gets."""
        if self.method not in _TAKES[self.route]:
            return "method_not_allowed"
        if self.route in _OPEN:
            return ""
        if not _OPENS[self.key]:
            return "unauthorized"
        if self.opened:
            return ""
        return "project_required" if _OPENS[self.key] == "*" else "scope_mismatch"


def attempts(source: random.Random) -> list[Attempt]:
    """Every kind of key × project × method × route: 1,400."""
    product = itertools.product(_OPENS, _NAMED, _METHODS, ("session", "override", "sessions", ""))
    secret = generate_secret()
    malformed = (
        "", "Bearer", "Bearer ", "Bearer fmk_", f"Bearer {secret}x", f"Bearer {secret[:-1]}", f"Basic {secret}", secret,
        f"Bearer {secret.upper()}", f"Bearer {AUTHORIZATION.split()[1][:-1]}\xff", f"{AUTHORIZATION}, {AUTHORIZATION}",
        f"{AUTHORIZATION} x", f"Bearer\t{AUTHORIZATION.split()[1]}", f"Bearer \"{secret}\"", "Bearer " + "a" * 9000,
    )  # fmt: skip
    return [
        Attempt(i, key, project, method, route or source.choice(list(_TAKES)[3:]), source.choice(malformed))
        for i, (key, project, method, route) in enumerate(product)
    ]


async def attack(world: World, inputs: Sequence[Attempt]) -> list[str]:
    """Try each; then see that the projects hold what the permitted calls made, and nothing else changed."""
    secrets = await asyncio.to_thread(_prepare, world)
    before = {project: (await world.sessions(project))["kept"] for project in _OWNED}

    async def one(attempt: Attempt) -> list[str]:
        authorization = {"none": None, "malformed": attempt.malformed, "bootstrap": AUTHORIZATION}.get(attempt.key, "")
        if authorization == "" and attempt.key != "malformed":
            scheme, name = ("tOkEn", "alpha") if attempt.key.endswith("Token") else ("bearer", attempt.key)
            authorization = f"{scheme} {secrets[name]}"
        async with world.client(authorization) as client:
            query = {"environment": "staging", **({"project": attempt.project} if attempt.project else {})}
            path = f"/{attempt.route}"
            if attempt.route in ("session", "override"):
                path = f"/sessions/{attempt.session}" + ("/overrides/ovr_alpha" if attempt.route == "override" else "")
            if attempt.route == "sessions" and attempt.method == "DELETE":
                query |= {"prefix": attempt.session, "mode": "delete"}
            elif attempt.route == "session" and attempt.method == "DELETE" and attempt.number % 2:
                query |= {"mode": "delete"}
            if attempt.route in _OPEN:
                query = {}
            body, headers = None, [("Content-Type", "application/json")]
            if attempt.method == "PUT":
                body = b'{"label": "own"}'
            return _judge(attempt, await client.call(attempt.method, path, query, body, headers))

    failures = await in_parallel(inputs, one)
    for project in _OWNED:
        stored = await world.sessions(project)
        if stored.pop("kept", None) != before[project]:
            failures.append(f"{project}: the session that nobody may touch has changed")
        allowed = {attempt.session for attempt in inputs if attempt.opened == project and not attempt.expected}
        failures += [f"{project}: a forbidden call made {key!r}" for key in stored.keys() - allowed]
    return failures


def _judge(attempt: Attempt, answer: Answer) -> list[str]:
    wrong = []
    if attempt.method == "HEAD":
        good = answer.status < 400 or answer.status == 404
        if good != (not attempt.expected) or (attempt.expected and answer.status not in (401, 403, 405, 422, 503)):
            wrong.append(f"answered {answer.status}, expected {attempt.expected or 'a success'}")
    elif attempt.expected == "unauthorized" and answer.code == "store_unavailable":
        pass  # a slow machine could not load the keys in time
    elif attempt.expected and answer.code != attempt.expected:
        wrong.append(f"answered {answer.status} {answer.body[:200]!r}, expected {attempt.expected}")
    elif not attempt.expected and answer.status != 200 and answer.code not in ("not_found", "invalid_override"):
        wrong.append(f"answered {answer.status} {answer.body[:200]!r}, expected a success")
    wrong += [
        f"the answer holds what only {project} may read"
        for project in _OWNED
        if f"secret-of-{project}".encode() in answer.body and attempt.opened != project
    ]
    if answer.code == "unauthorized" and "www-authenticate" not in answer.headers:
        wrong.append("a 401 without WWW-Authenticate")
    return wrong


def _prepare(world: World) -> dict[str, str]:
    """Make the keys, the catalogs and the sessions; returns the secrets."""
    with world.store() as store:
        secrets = {"unknown": generate_secret()}
        for project in _OWNED:
            mock = {"id": f"ovr_{project}", "name": f"secret-of-{project}"}
            scenario = {"id": f"scn_{project}", "name": f"secret-of-{project}", "urlId": "x", "mocks": [mock["id"]]}
            catalog = {"staging": {"mocks": [mock], "scenarios": [scenario]}}
            store.project(project).apply_catalog({"project": project, "environments": catalog})
            store.environment(project, "staging").put("kept", label=f"secret-of-{project}", overrides=[mock["id"]])
            secrets[project] = store.api_keys.create(project, project=project).secret
        secrets["all"] = store.api_keys.create("all").secret
        revoked = store.api_keys.create("revoked")
        secrets["revoked"] = revoked.secret
        store.api_keys.revoke(revoked.key.id)
        expires_at = world.now_ms() + 100
        secrets["expired"] = store.api_keys.create("expired", expires_at=expires_at).secret
        while world.now_ms() <= expires_at:
            time.sleep(0.01)
        return secrets
