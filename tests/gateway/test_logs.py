"""Logs hold no session key."""

from __future__ import annotations

import logging

import pytest

from gateway.logs import JSONFormatter
from sessionstore.protocol.keyspace import EnvironmentKeyspace
from sessionstore.session import hash_session_key

from ..support.gateway import API, assert_error


async def test_session_key_is_in_no_log_even_if_its_data_is_corrupt(
    api: API, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a session's hash that this library did not write
    keys = EnvironmentKeyspace(prefix, "checkout", "staging")
    await api.redis().hset(keys.session("secret-key"), mapping={"rev": "many", "expiresAt": "never"})

    # When it is read
    with caplog.at_level(logging.DEBUG):
        response = await api.get("secret-key")

    # Then the log says what to do, and names the session by a hash of its key
    assert_error(response, 500, "internal_error")
    ours = [record for record in caplog.records if record.name.startswith(("gateway", "sessionstore"))]
    logged = "\n".join(JSONFormatter().format(record) for record in ours)
    assert "delete the session" in logged
    assert hash_session_key("secret-key") in logged
    assert response.headers["x-request-id"] in logged
    assert "secret-key" not in logged
