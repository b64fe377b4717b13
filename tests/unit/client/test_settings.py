"""Where a client's settings come from."""

from __future__ import annotations

from typing import Any

import pytest

from sessionstore import InvalidInputError, InvalidSlugError
from sessionstore.client.settings import ClientSettings, read_settings

KEY = "fmk_" + "k" * 43
OTHER_KEY = "fmk_" + "o" * 43
VARIABLES = {
    "SESSIONSTORE_URL": "http://variable:8080",
    "SESSIONSTORE_API_KEY": KEY,
    "SESSIONSTORE_PROJECT": "checkout",
    "SESSIONSTORE_ENVIRONMENT": "staging",
}


def read(environ: dict[str, str], **arguments: Any) -> ClientSettings:
    given = {"url": None, "api_key": None, "project": None, "environment": None, "timeout_s": 10.0, "retry_for_s": 30.0}
    return read_settings(**{**given, **arguments}, environ=environ)


def test_variables_name_what_no_argument_does() -> None:
    assert read(VARIABLES) == ClientSettings("http://variable:8080", KEY, "checkout", "staging", 10.0, 30.0)


def test_arguments_win() -> None:
    given = {"url": "https://argument/mocks", "api_key": OTHER_KEY, "project": "search", "environment": "uat"}
    assert read(VARIABLES, **given) == ClientSettings("https://argument/mocks", OTHER_KEY, "search", "uat", 10.0, 30.0)


def test_an_empty_variable_counts_as_unset() -> None:
    settings = read({**VARIABLES, "SESSIONSTORE_PROJECT": "", "SESSIONSTORE_ENVIRONMENT": ""})
    assert (settings.project, settings.environment) == (None, None)


@pytest.mark.parametrize(
    "url", ["http://gateway", "http://gateway/", "http://gateway/api/v1", "http://gateway/api/v1/"]
)
def test_the_url_may_end_with_a_slash_or_the_path_of_the_api(url: str) -> None:
    assert read(VARIABLES, url=url).url == "http://gateway"


def test_a_line_break_around_the_key_is_dropped_as_files_of_secrets_have_one() -> None:
    assert read({**VARIABLES, "SESSIONSTORE_API_KEY": KEY + "\n"}).api_key == KEY


@pytest.mark.parametrize(
    ("missing", "words"), [("URL", "set SESSIONSTORE_URL"), ("API_KEY", "set SESSIONSTORE_API_KEY")]
)
def test_a_missing_setting_is_named(missing: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        read({**VARIABLES, f"SESSIONSTORE_{missing}": ""})


@pytest.mark.parametrize(
    "url",
    [
        "gateway:8080",
        "ftp://gateway",
        "http://",
        "http://gateway:port",
        "http://gateway:0",
        "http://[gateway",
        "http://gateway?project=checkout",
        "http://gateway#top",
        "http://name:secret@gateway",
    ],
)
def test_an_invalid_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidInputError, match="URL is invalid") as caught:
        read(VARIABLES, url=url)
    assert "secret" not in str(caught.value)


def test_an_invalid_key_is_refused_and_a_valid_one_never_shown() -> None:
    with pytest.raises(InvalidInputError, match="must be fmk_") as caught:
        read(VARIABLES, api_key="fmk_short")
    assert "short" not in str(caught.value)
    assert KEY not in repr(read(VARIABLES))


@pytest.mark.parametrize("name", ["project", "environment"])
def test_a_slug_is_checked(name: str) -> None:
    with pytest.raises(InvalidSlugError, match=name):
        read(VARIABLES, **{name: "no slug"})


@pytest.mark.parametrize(("name", "value"), [("timeout_s", 0), ("timeout_s", 3601), ("retry_for_s", -1)])
def test_seconds_are_bounded(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=name):
        read(VARIABLES, **{name: value})
