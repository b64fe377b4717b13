"""A store refuses the data of another release's layout."""

from __future__ import annotations

import pytest

from sessionstore import AsyncEnvironment, IncompatibleLayoutError, StoreUnavailableError

from ..support.adapter import Backend


async def test_a_store_refuses_another_layout_and_says_what_to_do(backend: Backend, staging: AsyncEnvironment) -> None:
    # Given a session in layout 1
    await staging.put("ci-42", label="x")
    backend.raw.hdel(f"{backend.prefix}:{{checkout}}:staging:head", "layout")

    # Then the store refuses writes
    with pytest.raises(IncompatibleLayoutError, match=r"layout 1, .* needs layout 2; .* CHANGELOG\.md"):
        await staging.put("ci-42", label="y")

    # and opens no view
    with pytest.raises(StoreUnavailableError, match="layout 1"):
        await staging.view(timeout_s=0.5).open()

    # and the session is unchanged, because layout 2 has the same sessions
    session = await staging.get("ci-42")
    assert session is not None
    assert session.label == "x"
