"""Sessions and their identifiers: pure values."""

from __future__ import annotations

import random
import string
from collections import Counter
from datetime import datetime

import msgspec
import pytest
from hypothesis import given, strategies as st

from sessionstore import Effect, InvalidSessionKeyError, Session, normalize_session_key, session_key_from_header
from sessionstore.session import validate_session_key

#: Text rich in what the rules are about: white space, line breaks and long runs.
KEY_TEXT = st.one_of(
    st.text(max_size=260),
    st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x85\xa0\u2028\u2029\u3000ab\u00e9\U0001f600", max_size=450),
    st.builds(
        lambda start, middle, end: start + middle * 200 + end, st.text(max_size=5), st.text(max_size=3), st.text()
    ),
)


def session(**fields: object) -> Session:
    return Session(project="checkout", environment="staging", session_key="ci-42", **fields)  # type: ignore[arg-type]


def can_be_latin_1(text: str) -> bool:
    return all(ord(char) < 256 for char in text)


class TestSessionKey:
    @given(KEY_TEXT)
    def test_normalising(self, text: str) -> None:
        key = normalize_session_key(text)

        assert normalize_session_key(key) == key
        assert len(key) <= 200
        assert not set(key) & set("\n\r\u2028\u2029")
        assert key == key.strip()
        # Then nothing is lost but line breaks, white space at the ends, and what comes after the cut
        kept = "".join(char for char in text if char not in "\n\r\u2028\u2029").strip()
        assert kept.startswith(key)
        assert key == kept or kept[:200].rstrip() == key

    @given(KEY_TEXT)
    def test_a_valid_key_is_normal_and_survives_utf_8(self, text: str) -> None:
        try:
            key = validate_session_key(text)
        except InvalidSessionKeyError:
            return
        assert key == validate_session_key(key) == normalize_session_key(text)
        assert key.encode().decode() == key
        assert not any(ord(char) < 32 for char in key)

    @pytest.mark.parametrize(
        ("raw", "key"),
        [
            ("ci-42", "ci-42"),
            (" ci-42\t", "ci-42"),
            ("ci\r\n-42\n", "ci-42"),
            ("a\u2028b\u2029", "ab"),
            ("\n \r x", "x"),
            ("x" * 201, "x" * 200),
            ("x" * 199 + " y", "x" * 199),
            ("\U0001f600" * 201, "\U0001f600" * 200),
            ("a b", "a b"),
            ("", ""),
            (" \n ", ""),
        ],
    )
    def test_examples(self, raw: str, key: str) -> None:
        assert normalize_session_key(raw) == key

    @pytest.mark.parametrize(
        ("value", "key"),
        [
            (None, None),
            (b"", None),
            ("", None),
            (b" \t", None),
            (b"ci-42", "ci-42"),
            (" ci-42 ", "ci-42"),
            ("\u00e9".encode(), "\u00e9"),
            # as an ASGI framework decodes it
            ("\u00e9".encode().decode("latin-1"), "\u00e9"),
            # Latin-1, which is not UTF-8
            (b"\xe9", "\u00e9"),
            ("\xe9", "\u00e9"),
            # text that no header can hold
            ("\U0001f600", "\U0001f600"),
        ],
    )
    def test_from_a_header(self, value: bytes | str | None, key: str | None) -> None:
        assert session_key_from_header(value) == key

    @given(st.binary(max_size=300) | KEY_TEXT.map(lambda text: text.encode(errors="replace")))
    def test_from_any_bytes(self, raw: bytes) -> None:
        key = session_key_from_header(raw)

        assert key is None or (key and normalize_session_key(key) == key)
        # Frameworks decode a header as Latin-1. mitmproxy decodes it as UTF-8, whose invalid bytes escape.
        assert key == session_key_from_header(raw.decode("latin-1"))
        escaped = raw.decode(errors="surrogateescape")
        if not can_be_latin_1(escaped):
            assert key == session_key_from_header(escaped)

    @pytest.mark.parametrize("value", ["\ud800", "a\udfff", 7, bytearray(b"a"), ["a"]])
    def test_not_from_a_value_that_is_no_header(self, value: object) -> None:
        assert session_key_from_header(value) is None  # type: ignore[arg-type]

    @pytest.mark.parametrize("filler", [b"\xff", b"\n", b" ", b"\0", "\u2028".encode(), b"a\n", b"x"])
    def test_from_a_header_of_a_megabyte(self, filler: bytes) -> None:
        key = session_key_from_header(filler * (1_000_000 // len(filler)))

        assert key is None or len(key) == 200

    @given(KEY_TEXT)
    def test_the_api_and_a_proxy_agree(self, text: str) -> None:
        try:
            key = validate_session_key(text)
        except InvalidSessionKeyError:
            return
        assert session_key_from_header(key.encode()) == key


class TestJson:
    def test_a_full_session_is_exactly_the_contracts(self) -> None:
        full = session(
            label="CI run 4821",
            scenario="scn_paymentDeclined",
            overrides=("ovr_extraMock",),
            last_seen_at=1_782_216_000_000,
            revision=7,
            created_at=1,
            expires_at=2,
            effect=Effect(7, 1, 0, True, 0.1, 0.2),
        )

        assert full.to_json() == (
            b'{"project":"checkout","environment":"staging","sessionKey":"ci-42","label":"CI run 4821",'
            b'"scenario":"scn_paymentDeclined","overrides":["ovr_extraMock"],"globalDelayMs":0,"globalDelayMaxMs":0,'
            b'"lastSeenAt":"2026-06-23T12:00:00.000Z"}'
        )

    def test_an_empty_session_is_exactly_the_contracts(self) -> None:
        assert session(last_seen_at=1_782_216_000_009).to_json() == (
            b'{"project":"checkout","environment":"staging","sessionKey":"ci-42","label":null,"scenario":null,'
            b'"overrides":[],"globalDelayMs":0,"globalDelayMaxMs":0,"lastSeenAt":"2026-06-23T12:00:00.009Z"}'
        )

    def test_the_document_has_the_same_fields(self) -> None:
        full = session(label='\u00e9"\n', global_delay_ms=5, global_delay_max_ms=9)

        document = msgspec.to_builtins(full.document())
        assert msgspec.json.decode(full.to_json()) == {**document, "overrides": []}
        assert document["label"] == '\u00e9"\n'

    @given(st.integers(0, 4_102_444_800_000))
    def test_times_are_exact_to_the_millisecond(self, ms: int) -> None:
        text = session(last_seen_at=ms).document().last_seen_at

        decoded = msgspec.convert(text, datetime)
        assert len(text) == len("2026-06-23T12:00:00.000Z")
        assert round(decoded.timestamp() * 1000) == ms


class TestDelay:
    @pytest.mark.parametrize(("fixed", "maximum"), [(0, 0), (5, 0), (5, 4), (5, 5), (120_000, 0)])
    def test_fixed(self, fixed: int, maximum: int) -> None:
        delayed = session(global_delay_ms=fixed, global_delay_max_ms=maximum)

        assert {delayed.delay_ms() for _ in range(20)} == {fixed}

    def test_drawn_evenly_between_the_two_both_included(self) -> None:
        delayed = session(global_delay_ms=3, global_delay_max_ms=7)
        rng = random.Random(1)

        counts = Counter(delayed.delay_ms(rng) for _ in range(10_000))

        assert set(counts) == {3, 4, 5, 6, 7}
        assert all(1_800 < count < 2_200 for count in counts.values())

    def test_a_seed_repeats_it(self) -> None:
        delayed = session(global_delay_max_ms=120_000)

        first, second = ([delayed.delay_ms(rng) for _ in range(20)] for rng in (random.Random(7), random.Random(7)))
        assert first == second
        assert len(set(first)) > 1


class TestEquality:
    def test_the_effect_does_not_count(self) -> None:
        written = session(label="x", effect=Effect(1, 0, 0, True, 0.1, 0.2))

        assert written == session(label="x")
        assert hash(written) == hash(session(label="x"))

    @pytest.mark.parametrize("field", ["label", "revision", "last_seen_at", "expires_at"])
    def test_everything_else_does(self, field: str) -> None:
        assert session(**{field: "x" if field == "label" else 1}) != session()

    def test_nothing_else_is_equal(self) -> None:
        assert session() != "ci-42"


def test_ids_hold_what_urls_do_not_escape() -> None:
    from sessionstore.session import validate_override, validate_scenario

    for char in map(chr, range(256)):
        fine = char in string.ascii_letters + string.digits + "_-"
        for validate, prefix in ((validate_override, "ovr_"), (validate_scenario, "scn_")):
            if fine:
                assert validate(f"{prefix}a{char}") == f"{prefix}a{char}"
            else:
                with pytest.raises(ValueError, match="is not"):
                    validate(f"{prefix}a{char}")
