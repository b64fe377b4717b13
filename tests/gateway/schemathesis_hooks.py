"""Rules of the API that a JSON Schema can't express, for Schemathesis, which loads this file.

They change only the cases that Schemathesis generates as valid. Invalid cases stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis
from hypothesis import strategies as st

from gateway.openapi import ENTITY_TAGS_PATTERN
from sessionstore import Scenario
from sessionstore.catalog.model import Catalog, page_scenarios
from sessionstore.paging import encode_cursor

__all__ = ["CATALOG", "PLACES"]

#: The environment of the sessions has no catalog and so takes any id. The other one has scenarios to list.
PLACES = {
    False: {"project": "checkout", "environment": "staging"},
    True: {"project": "search", "environment": "live"},
}
CATALOG: dict[str, Any] = {
    "project": "search",
    "environments": {
        "live": {
            "scenarios": [{"id": f"scn_{n}", "name": f"Scenario {n}", "urlId": f"scenario-{n}"} for n in range(3)],
        }
    },
}


_SECURED = ("/api/v1/scenarios", "/api/v1/sessions", "/api/v1/views")


def _place_after(name: str) -> str:
    """The cursor that a list of scenarios returns after one of this name."""
    scenarios = (Scenario("scn_a", name, "a"), Scenario("scn_b", name + "b", "b"))
    cursor = page_scenarios(Catalog((), scenarios), 1).next_before
    assert cursor is not None
    return cursor


schemathesis.openapi.format(
    "session-cursor",
    st.builds(lambda *place: encode_cursor(place), st.integers(0, 2**53 - 1), st.text(min_size=1, max_size=5)),
)
schemathesis.openapi.format("scenario-cursor", st.builds(_place_after, st.text(max_size=5)))


@schemathesis.hook
def map_case(context: object, case: Any) -> Any:
    """Turn a case that fits the schema into a valid request."""
    if case.meta is None or not case.meta.generation.mode.is_positive or not case.operation.path.startswith(_SECURED):
        return case
    # This key opens every project, and no project has exactly one environment, so name both …
    case.query = {**(case.query or {}), **PLACES[case.operation.path.endswith("/scenarios")]}
    if isinstance(case.body, dict):
        # … in the query only, because query and body must agree.
        case.body.pop("project", None)
        case.body.pop("environment", None)
    if case.operation.label == "DELETE /api/v1/sessions/{sessionKey}" and case.meta.phase.name.value == "stateful":
        # The check use_after_free needs the mode that removes the session.
        case.query["mode"] = "delete"
    if "views" in case.query:
        # No proxy runs.
        case.query["views"] = 0
    if "replicas" in case.query:
        # Redis has none.
        case.query["replicas"] = 0
    for name in ("If-Match", "If-None-Match"):
        # In its phase "coverage", Schemathesis ignores the pattern of a header.
        if name in (case.headers or {}) and not re.fullmatch(ENTITY_TAGS_PATTERN, str(case.headers[name])):
            del case.headers[name]
    return case
