"""API keys as values, and the ring that a gateway checks them with; the clock is moved by hand."""

from __future__ import annotations

import base64

import pytest

from sessionstore import ApiKey, InvalidFieldError, KeyRing, KeySnapshot, NewApiKey, Refusal
from sessionstore.api_keys.model import USED_INTERVAL_MS, generate_secret, hash_secret, is_secret
from sessionstore.api_keys.ring import REFRESH_INTERVAL_S, REVOCATION_BOUND_S

NOW_MS = 1_800_000_000_000


def record(secret: str, **fields: object) -> ApiKey:
    unset = dict.fromkeys(("project", "expires_at", "revoked_at", "last_used_at"))
    known = {"id": hash_secret(secret)[:12], "name": "ci", "created_at": 1}
    return ApiKey(**{**unset, **known, **fields})  # type: ignore[arg-type]


def snapshot(*keys: tuple[str, ApiKey], now: int = NOW_MS) -> KeySnapshot:
    return KeySnapshot(now, {hash_secret(secret): key for secret, key in keys})


SECRET = "fmk_" + "aB0-_" * 8 + "aB0"


def ring(now: int = NOW_MS, sent_at: float = 100.0, **fields: object) -> KeyRing:
    """A ring that holds SECRET."""
    loaded = KeyRing()
    loaded.load(snapshot((SECRET, record(SECRET, **fields)), now=now), sent_at)
    return loaded


class TestSecrets:
    def test_a_key_is_fmk_and_32_random_bytes(self) -> None:
        secrets = {generate_secret() for _ in range(100)}
        assert len(secrets) == 100
        for secret in secrets:
            assert is_secret(secret)
            assert secret.startswith("fmk_")
            assert len(base64.urlsafe_b64decode(secret[4:] + "=")) == 32

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "fmk_",
            SECRET[:-1],
            SECRET + "A",
            SECRET + "\n",
            "FMK" + SECRET[3:],
            SECRET[:-1] + "=",
            "fmk_" + "ä" * 43,
        ],
    )
    def test_rejects_text_of_another_form(self, text: str) -> None:
        assert not is_secret(text)

    def test_the_secret_is_not_in_the_repr(self) -> None:
        new = NewApiKey(record(SECRET), SECRET)
        assert SECRET not in repr(new)
        assert SECRET not in str(new)
        assert new.secret == SECRET

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({}, "active"),
            ({"expires_at": NOW_MS + 1}, "active"),
            ({"expires_at": NOW_MS}, "expired"),
            ({"revoked_at": 1}, "revoked"),
            ({"revoked_at": 1, "expires_at": 2}, "revoked"),
        ],
    )
    def test_status(self, fields: dict[str, int], status: str) -> None:
        assert record(SECRET, **fields).status(NOW_MS) == status


class TestKeyRing:
    def test_admits_a_key_with_its_scope(self) -> None:
        assert ring(project="checkout").authenticate(SECRET, 100.0) == record(SECRET, project="checkout")

    @pytest.mark.parametrize(
        ("secret", "fields", "refusal"),
        [
            (None, {}, Refusal.MISSING),
            ("", {}, Refusal.MALFORMED),
            ("fmk_x", {}, Refusal.MALFORMED),
            ("\ud800", {}, Refusal.MALFORMED),
            (SECRET + "x", {}, Refusal.MALFORMED),
            ("fmk_" + 43 * "A", {}, Refusal.UNKNOWN),
            (SECRET, {"revoked_at": NOW_MS + 10_000}, Refusal.REVOKED),
            (SECRET, {"expires_at": NOW_MS}, Refusal.EXPIRED),
        ],
    )
    def test_refuses(self, secret: str | None, fields: dict[str, int], refusal: Refusal) -> None:
        assert ring(**fields).authenticate(secret, 100.0) is refusal

    def test_a_hash_that_begins_like_a_known_one_is_unknown(self) -> None:
        # Given a record whose id is that of the secret, and whose hash is another's
        digest = hash_secret(SECRET)[:12] + "0" * 52
        loaded = KeyRing()
        loaded.load(KeySnapshot(NOW_MS, {digest: record(SECRET)}), 100.0)
        assert loaded.authenticate(SECRET, 100.0) is Refusal.UNKNOWN

    def test_a_key_expires_between_two_loads(self) -> None:
        # Given a key that ends half a second after the load
        loaded = ring(expires_at=NOW_MS + 500)
        assert isinstance(loaded.authenticate(SECRET, 100.499), ApiKey)
        assert loaded.authenticate(SECRET, 100.5) is Refusal.EXPIRED

    def test_rejects_every_key_before_the_first_load(self) -> None:
        assert KeyRing().authenticate(SECRET, 0.0) is Refusal.UNAVAILABLE
        assert KeyRing().age_s(0.0) == float("inf")

    def test_rejects_every_key_if_the_records_are_older_than_the_bound(self) -> None:
        # Given records that were asked for at 100, when Redis is away
        loaded = ring()
        assert isinstance(loaded.authenticate(SECRET, 100.0 + REVOCATION_BOUND_S), ApiKey)
        late = 100.0 + REVOCATION_BOUND_S + 0.001
        assert not loaded.is_current(late)
        # Then every key gets the same answer, so malformed and unknown keys look like valid ones
        for secret in (SECRET, generate_secret(), "fmk_x"):
            assert loaded.authenticate(secret, late) is Refusal.UNAVAILABLE
        assert loaded.authenticate(None, late) is Refusal.MISSING
        # When it is back, then they are current again
        loaded.load(snapshot((SECRET, record(SECRET))), late)
        assert isinstance(loaded.authenticate(SECRET, late), ApiKey)

    def test_an_active_key_stays_valid_for_the_grace(self) -> None:
        # Given records of active, revoked and expiring keys, and a grace of a minute
        loaded = KeyRing(grace_s=60.0)
        revoked, expiring = generate_secret(), generate_secret()
        loaded.load(
            snapshot(
                (SECRET, record(SECRET)),
                (revoked, record(revoked, revoked_at=1)),
                (expiring, record(expiring, expires_at=NOW_MS + 30_000)),
            ),
            100.0,
        )

        # When they are too old to know all keys, then the active key works
        assert isinstance(loaded.authenticate(SECRET, 160.0), ApiKey)
        assert isinstance(loaded.authenticate(expiring, 129.999), ApiKey)
        # And all others get the same answer
        for secret in (revoked, generate_secret(), "fmk_x"):
            assert loaded.authenticate(secret, 101.001) is Refusal.UNAVAILABLE
        assert loaded.authenticate(expiring, 130.0) is Refusal.UNAVAILABLE
        # And after the grace, every key
        assert loaded.authenticate(SECRET, 160.001) is Refusal.UNAVAILABLE

    def test_a_grace_below_the_bound_is_the_bound(self) -> None:
        loaded = KeyRing(grace_s=0.0)
        loaded.load(snapshot((SECRET, record(SECRET))), 100.0)
        assert isinstance(loaded.authenticate(SECRET, 100.0 + REVOCATION_BOUND_S), ApiKey)

    def test_no_grace_admits_a_key_before_the_first_load(self) -> None:
        assert KeyRing(grace_s=float("inf")).authenticate(SECRET, 0.0) is Refusal.UNAVAILABLE

    def test_a_revoked_key_is_refused_from_the_next_load_on(self) -> None:
        loaded = ring()
        loaded.load(snapshot((SECRET, record(SECRET, revoked_at=NOW_MS))), 100.0 + REFRESH_INTERVAL_S)
        assert loaded.authenticate(SECRET, 100.3) is Refusal.REVOKED
        # An answer that was asked for earlier and comes later changes nothing.
        loaded.load(snapshot((SECRET, record(SECRET))), 100.1)
        assert loaded.authenticate(SECRET, 100.3) is Refusal.REVOKED

    def test_bootstrap_keys_need_no_records(self) -> None:
        loaded = KeyRing([SECRET])
        key = loaded.authenticate(SECRET, 5.0)
        assert isinstance(key, ApiKey)
        assert (key.name, key.project) == ("bootstrap", None)
        assert loaded.authenticate(generate_secret(), 5.0) is Refusal.UNAVAILABLE
        assert loaded.due_uses() == {}

    def test_the_error_for_a_malformed_bootstrap_key_does_not_quote_it(self) -> None:
        with pytest.raises(InvalidFieldError) as caught:
            KeyRing(["hunter2"])
        assert "hunter2" not in str(caught.value)

    def test_uses_are_due_once_a_minute(self) -> None:
        # Given a key that was never used, then its use is due, in Redis time
        loaded = ring()
        assert loaded.due_uses() == {}
        loaded.authenticate(SECRET, 100.2)
        key_id = record(SECRET).id
        assert loaded.due_uses() == {key_id: NOW_MS + 200}
        # When it is not recorded, then it stays due, also after another load
        loaded.load(snapshot((SECRET, record(SECRET)), now=NOW_MS + 250), 100.25)
        assert loaded.due_uses() == {key_id: NOW_MS + 200}
        # When a load shows that it was recorded, then the next is due a minute later
        used_at = NOW_MS + 200
        loaded.load(snapshot((SECRET, record(SECRET, last_used_at=used_at)), now=NOW_MS + 500), 100.5)
        assert loaded.due_uses() == {}
        for sent_at, at_ms in ((130.0, used_at + USED_INTERVAL_MS - 1), (160.0, used_at + USED_INTERVAL_MS)):
            loaded.load(snapshot((SECRET, record(SECRET, last_used_at=used_at)), now=at_ms), sent_at)
            loaded.authenticate(SECRET, sent_at)
            assert loaded.due_uses() == ({key_id: at_ms} if at_ms - used_at >= USED_INTERVAL_MS else {})

    def test_the_use_of_a_removed_key_is_dropped(self) -> None:
        loaded = ring()
        loaded.authenticate(SECRET, 100.0)
        loaded.load(snapshot(), 100.1)
        assert loaded.due_uses() == {}

    def test_a_refused_key_is_not_used(self) -> None:
        loaded = ring(revoked_at=1)
        loaded.authenticate(SECRET, 100.0)
        assert loaded.due_uses() == {}
