"""The label of a session: the test and the CI run that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

#: Code points of a session's label.
_MAX_LENGTH = 200

#: The URL of the run: GitLab, Buildkite, Jenkins. GitHub gives it in three parts.
_URLS = ("CI_JOB_URL", "BUILDKITE_BUILD_URL", "BUILD_URL")


def label_of(node_id: str, environ: Mapping[str, str]) -> str:
    """The test's node id, and the URL of the run; a node id that is too long loses its beginning."""
    url = run_url(environ)
    end = f" {url}" if url else ""
    room = _MAX_LENGTH - len(end)
    if len(node_id) > room:
        node_id = f"…{node_id[1 - room :]}" if room > 1 else ""
    return f"{node_id}{end}"[:_MAX_LENGTH]


def run_url(environ: Mapping[str, str]) -> str | None:
    """Where a CI run on GitHub, GitLab, Jenkins or Buildkite is shown; None elsewhere."""
    parts = [environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    if all(parts):
        return "{}/{}/actions/runs/{}".format(*parts)
    return next((environ[name] for name in _URLS if environ.get(name)), None)
