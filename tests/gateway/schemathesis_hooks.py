"""What Schemathesis has to be told of the API, since a JSON Schema can't say it; loaded by the process that runs it.

Only cases that are meant to be fine are touched. Those that are meant to be refused go out as they were made.
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

#: Where sessions are set, and where there are scenarios to list: an environment without a catalog takes any id.
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


def _place_after(name: str) -> str:
    """What a list of scenarios returns after one of this name."""
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
    """Make a case that is fine by the schema fine in fact."""
    if case.meta is None or not case.meta.generation.mode.is_positive or "/api/v1/s" not in case.operation.path:
        return case
    # With a key for every project, and where none has exactly one environment, both have to be named …
    case.query = {**(case.query or {}), **PLACES[case.operation.path.endswith("/scenarios")]}
    if isinstance(case.body, dict):
        # … and in query and body they would have to be the same.
        case.body.pop("project", None)
        case.body.pop("environment", None)
    if case.operation.label == "DELETE /api/v1/sessions/{sessionKey}" and case.meta.phase.name.value == "stateful":
        # Only this mode makes the session go away, which is what the check use_after_free is about.
        case.query["mode"] = "delete"
    for name in ("If-Match", "If-None-Match"):
        # In its phase "coverage" Schemathesis makes headers of letters and digits only, whatever their pattern.
        if name in (case.headers or {}) and not re.fullmatch(ENTITY_TAGS_PATTERN, str(case.headers[name])):
            del case.headers[name]
    return case
