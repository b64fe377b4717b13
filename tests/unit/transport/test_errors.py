"""`translate` gives each foreign error its class, and quotes neither host nor password."""

from __future__ import annotations

import ssl

import pytest
import redis.exceptions as redis_errors

from sessionstore.errors import (
    CorruptDataError,
    IncompatibleLayoutError,
    OutcomeUnknownError,
    SessionStoreError,
    StoreUnavailableError,
)
from sessionstore.protocol.calls import Call
from sessionstore.protocol.scripts import load_script
from sessionstore.transport.errors import describe_loss, is_lasting, translate

CALL = Call(load_script("ping"), (), (), lambda payload: payload)
SECRETS = "redis://user:hunter2@db.internal:6379"
KINDS = [
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.AuthenticationError,
    redis_errors.NoPermissionError,
    redis_errors.ReadOnlyError,
    redis_errors.BusyLoadingError,
    redis_errors.OutOfMemoryError,
    redis_errors.InvalidResponse,
    redis_errors.MaxConnectionsError,
    redis_errors.ResponseError,
    redis_errors.RedisError,
    ConnectionRefusedError,
    OSError,
    TimeoutError,
    ValueError,
]


def test_another_layout_is_an_incompatible_layout_error() -> None:
    error = translate(redis_errors.ResponseError("SSLAYOUT 1 script: abc, on @user_script:9."), CALL, sent=True)

    assert isinstance(error, IncompatibleLayoutError)
    assert "layout 1," in str(error)


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_error_quotes_the_host_or_the_password(kind: type[Exception], sent: bool) -> None:
    error = translate(kind(f"Error at {SECRETS}"), CALL, sent=sent)

    assert isinstance(error, SessionStoreError)
    assert "hunter2" not in str(error)
    assert "db.internal" not in str(error)


@pytest.mark.parametrize("kind", [redis_errors.ConnectionError, redis_errors.TimeoutError, OSError, TimeoutError])
def test_a_lost_answer_to_a_sent_write_is_an_unknown_outcome(kind: type[Exception]) -> None:
    write = Call(load_script("put"), (), (), lambda payload: payload, writes=True)

    assert type(translate(kind("gone"), write, sent=True)) is OutcomeUnknownError
    assert type(translate(kind("gone"), write, sent=False)) is StoreUnavailableError
    assert type(translate(kind("gone"), CALL, sent=True)) is StoreUnavailableError


@pytest.mark.parametrize("kind", [redis_errors.OutOfMemoryError, redis_errors.MaxConnectionsError])
def test_a_sent_write_that_redis_or_the_pool_refuses_changed_nothing(kind: type[Exception]) -> None:
    write = Call(load_script("put"), (), (), lambda payload: payload, writes=True)

    assert type(translate(kind("no"), write, sent=True)) is StoreUnavailableError


@pytest.mark.parametrize("kind", [redis_errors.ConnectionError, ssl.SSLCertVerificationError])
def test_a_certificate_is_named_as_the_cause(kind: type[Exception]) -> None:
    # An SSLCertVerificationError is a ValueError, too
    refused = kind(f"[SSL: CERTIFICATE_VERIFY_FAILED] not valid for {SECRETS}")

    assert str(translate(refused, CALL, sent=False)).startswith("Redis has a certificate that")
    assert describe_loss(refused).startswith("Redis has a certificate that")
    assert is_lasting(refused)


def test_the_text_of_a_reply_names_no_certificate() -> None:
    reply = redis_errors.ResponseError("WRONGTYPE of the key CERTIFICATE_VERIFY_FAILED")

    assert isinstance(translate(reply, CALL, sent=True), CorruptDataError)
