"""A session's label in CI."""

from __future__ import annotations

import pytest

from sessionstore.client.ci import label_of, run_url

GITHUB = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "shop/checkout",
    "GITHUB_RUN_ID": "4821",
}


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        (GITHUB, "https://github.com/shop/checkout/actions/runs/4821"),
        ({"CI_JOB_URL": "https://gitlab.com/shop/-/jobs/7"}, "https://gitlab.com/shop/-/jobs/7"),
        ({"BUILDKITE_BUILD_URL": "https://buildkite.com/shop/7"}, "https://buildkite.com/shop/7"),
        ({"BUILD_URL": "https://jenkins/job/shop/7/"}, "https://jenkins/job/shop/7/"),
        ({"GITHUB_RUN_ID": "4821", "BUILD_URL": ""}, None),
    ],
)
def test_the_url_of_the_run(environ: dict[str, str], url: str | None) -> None:
    assert run_url(environ) == url


def test_a_label_names_the_test_and_the_run() -> None:
    assert label_of("test_pay.py::test_declined", {}) == "test_pay.py::test_declined"
    assert label_of("test_pay.py::test_declined", GITHUB) == (
        "test_pay.py::test_declined https://github.com/shop/checkout/actions/runs/4821"
    )


def test_a_long_label_keeps_the_url_and_the_end_of_the_node_id() -> None:
    label = label_of("test_pay.py::" + "x" * 300 + "[declined]", GITHUB)
    assert len(label) == 200
    assert label.startswith("…xxx")
    assert label.endswith("xxx[declined] https://github.com/shop/checkout/actions/runs/4821")
    assert len(label_of("x" * 201, {})) == 200
    assert len(label_of("x", {"BUILD_URL": "u" * 300})) == 200
