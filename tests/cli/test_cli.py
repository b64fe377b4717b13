"""The command line: what it prints, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sessionstore import SessionStore
from sessionstore.cli.app import app, exit_code
from sessionstore.cli.output import plain, print_table
from sessionstore.cli.watch import History, describe
from sessionstore.embedded import EmbeddedServer
from sessionstore.errors import (
    CorruptDataError,
    NotEffectiveError,
    OutcomeUnknownError,
    PreconditionFailedError,
    SessionNotFoundError,
    SessionStoreError,
    StoreUnavailableError,
    TooFewViewsError,
)
from sessionstore.protocol import bulk_operations
from sessionstore.protocol.messages import Change, decode_change
from sessionstore.protocol.replies import HeadReply
from sessionstore.sync.environment import Environment

from ..support.redis_server import RedisServer, free_port
from ..support.replication import short_waits

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "examples" / "catalog.toml"

STAGING = ("-p", "checkout", "-e", "staging")


class Cli:
    """Runs commands in this process."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.environment = {
            "SESSIONSTORE_REDIS_URL": url,
            "SESSIONSTORE_PREFIX": prefix,
            # The first write to a new server waits for a whole lease; and a busy machine must keep it.
            "SESSIONSTORE_LEASE": "1",
        }

    def __call__(self, *arguments: str, code: int = 0, stdin: bytes | None = None) -> Any:
        result = CliRunner().invoke(app, list(arguments), env=self.environment, input=stdin, prog_name="sessionstore")
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        assert result.exit_code == code, f"{result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def error(self, *arguments: str, code: int) -> str:
        """Run a command that fails; return its one line on standard error."""
        result = self(*arguments, code=code)
        assert result.stdout == ""
        lines: list[str] = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        return lines[0]


@pytest.fixture
def cli(shared_redis: RedisServer, prefix: str) -> Cli:
    return Cli(shared_redis.url, prefix)


@pytest.fixture
def store(shared_redis: RedisServer, prefix: str) -> Iterator[SessionStore]:
    with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=1.0) as store:
        yield store


class TestSessions:
    def test_the_whole_life_of_a_session(self, cli: Cli) -> None:
        # Given no session, when it is shown, then it is not found
        assert "There is no session 'ci-42' on checkout/staging" in cli.error("get", "ci-42", *STAGING, code=1)

        # When every field is put
        put = cli(
            *("put", "ci-42", *STAGING, "--scenario", "scn_x", "--override", "ovr_b", "--override", "ovr_a"),
            *("--label", "CI run 4821", "--global-delay-ms", "5", "--global-delay-max-ms", "7"),
        )

        # Then it is shown as a table, and as the API's JSON with the revision
        for line in (
            "Label +CI run 4821",
            "Scenario +scn_x",
            "Overrides +ovr_b, ovr_a",
            "Delay ms +5-7",
            "Revision +1",
        ):
            assert re.search(f"^{line}$", put.stdout, re.MULTILINE), put.stdout
        shown = cli.json("get", "ci-42", *STAGING)
        assert list(shown) == [
            *("project", "environment", "sessionKey", "label", "scenario", "overrides"),
            *("globalDelayMs", "globalDelayMaxMs", "lastSeenAt", "revision", "createdAt", "expiresAt"),
            *("modifiedAt", "modifiedBy", "lookedUpAt", "ttlSeconds"),
        ]
        assert (shown["overrides"], shown["globalDelayMaxMs"], shown["revision"]) == (["ovr_b", "ovr_a"], 7, 1)

        # When one field is put, then the others stay
        shown = cli.json("put", "ci-42", *STAGING, "--label", "next")
        assert (shown["label"], shown["scenario"], shown["overrides"]) == ("next", "scn_x", ["ovr_b", "ovr_a"])
        assert shown["effect"]["waited"] is True
        # When fields are cleared, then they are empty
        shown = cli.json(
            *("put", "ci-42", *STAGING, "--clear-label", "--clear-scenario", "--no-overrides", "--no-wait"),
            *("--global-delay-ms", "0", "--global-delay-max-ms", "0"),
        )
        assert (shown["label"], shown["scenario"], shown["overrides"]) == (None, None, [])
        assert (shown["globalDelayMs"], shown["globalDelayMaxMs"], shown["effect"]["waited"]) == (0, 0, False)

        # When it is replaced, then only the named properties stay
        cli("put", "ci-42", *STAGING, "--scenario", "scn_x", "--label", "old")
        shown = cli.json("put", "ci-42", *STAGING, "--replace", "--label", "new")
        assert (shown["label"], shown["scenario"]) == ("new", None)

        # When it is reset and deleted, then deleting it again succeeds
        cli("put", "ci-42", *STAGING, "--label", "again")
        assert cli.json("reset", "ci-42", *STAGING)["label"] is None
        assert cli("delete", "ci-42", *STAGING).stderr == "Deleted 'ci-42'.\n"
        assert cli("delete", "ci-42", *STAGING).stderr == "There was no session 'ci-42'.\n"
        assert cli.json("delete", "ci-42", *STAGING)["existed"] is False
        assert "There is no session" in cli.error("reset", "ci-42", *STAGING, code=1)

    def test_a_session_may_have_a_ttl_of_its_own(self, cli: Cli) -> None:
        assert re.search("^TTL s +1800$", cli("put", "ci-42", *STAGING, "--ttl", "30m").stdout, re.MULTILINE)
        assert cli.json("get", "ci-42", *STAGING)["ttlSeconds"] == 1800
        assert cli.json("put", "ci-42", *STAGING, "--clear-ttl")["ttlSeconds"] is None
        for ttl, reason in (
            ("59", "at least 60"),
            ("2d", "at most 86400"),
            ("90.5", "whole number"),
            ("soon", "--ttl must"),
        ):
            assert reason in cli.error("put", "ci-42", *STAGING, "--ttl", ttl, code=2)
        assert "either --ttl or --clear-ttl" in cli.error(
            "put", "ci-42", *STAGING, "--ttl", "1h", "--clear-ttl", code=2
        )
        assert cli.json("get", "ci-42", *STAGING)["ttlSeconds"] is None

    @pytest.mark.parametrize("error", [None, KeyError("no such user")])
    def test_a_session_shows_who_set_it(
        self, cli: Cli, error: Exception | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def getuser() -> str:
            if error is not None:
                raise error
            return "mia"

        monkeypatch.setattr("getpass.getuser", getuser)
        monkeypatch.setattr("socket.gethostname", lambda: "laptop")
        monkeypatch.setattr("os.getuid", lambda: 1234)
        user = "1234" if error else "mia"

        shown = cli.json("put", "ci-42", *STAGING)

        assert shown["modifiedBy"] == f"{user}@laptop"
        assert re.search(f"^Modified by +{user}@laptop$", cli("get", "ci-42", *STAGING).stdout, re.MULTILINE)

    def test_one_mock_is_switched_on_and_off(self, cli: Cli) -> None:
        cli("put", "ci-42", *STAGING, "--override", "ovr_a", "--label", "x")

        assert cli.json("on", "ci-42", "ovr_b", *STAGING)["overrides"] == ["ovr_a", "ovr_b"]
        shown = cli.json("off", "ci-42", "ovr_a", *STAGING, "--no-wait")

        assert (shown["overrides"], shown["label"], shown["effect"]["waited"]) == (["ovr_b"], "x", False)
        assert "There is no session" in cli.error("off", "ci-43", "ovr_a", *STAGING, code=1)
        assert "not an override id" in cli.error("on", "ci-42", "b", *STAGING, code=2)

    def test_too_few_replicas_have_an_exit_code_of_their_own(self, cli: Cli) -> None:
        with short_waits():
            assert "The state is set" in cli.error("put", "ci-42", *STAGING, "--replicas", "1", code=9)
        for command in ("put", "reset", "delete", "reset --prefix", "delete --prefix"):
            assert "from 0 to 10" in cli.error(*command.split(), "ci-42", *STAGING, "--replicas", "11", code=2)
        for command in ("on", "off"):
            assert "from 0 to 10" in cli.error(command, "ci-42", "ovr_a", *STAGING, "--replicas", "11", code=2)
        assert "from 0 to 10" in cli.error("catalog", "apply", str(CATALOG), "--replicas", "11", code=2)
        cli.environment["SESSIONSTORE_REPLICAS"] = "11"
        assert "from 0 to 10" in cli.error("put", "ci-42", *STAGING, code=2)
        assert cli.json("put", "ci-42", *STAGING, "--replicas", "0")["effect"]["replicas"] == 0

    def test_too_few_views_have_an_exit_code_of_their_own(self, cli: Cli) -> None:
        for command in (("put",), ("on", "ovr_a"), ("off", "ovr_a"), ("reset",), ("delete",)):
            name, *override = command
            assert "The state is set" in cli.error(name, "ci-42", *override, *STAGING, "--views", "1", code=8)
        assert "does not wait" in cli.error("put", "ci-42", *STAGING, "--views", "1", "--no-wait", code=2)

    def test_sessions_whose_keys_begin_alike(self, cli: Cli) -> None:
        for name in ("ci-1", "ci-2", "ci", "other"):
            cli("put", name, *STAGING, "--label", "x")

        shown = cli.json("list", *STAGING, "--prefix", "ci-", "--limit", "1", "--all")
        assert {session["sessionKey"] for session in shown["sessions"]} == {"ci-1", "ci-2"}
        assert cli("reset", *STAGING, "--prefix", "ci-2").stderr == "Reset 1 session.\n"
        assert cli.json("reset", *STAGING, "--prefix", "ci-", "--no-wait")["count"] == 1
        assert cli("delete", *STAGING, "--prefix", "ci-").stderr == "Deleted 2 sessions.\n"
        shown = cli.json("delete", *STAGING, "--prefix", "ci-")
        assert (shown["count"], shown["effect"]["waited"]) == (0, True)
        assert {session["sessionKey"] for session in cli.json("list", *STAGING)["sessions"]} == {"ci", "other"}

    @pytest.mark.parametrize("command", ["delete", "reset"])
    def test_a_prefix_stands_alone(self, cli: Cli, command: str) -> None:
        cli("put", "ci-1", *STAGING, "--label", "x")

        for options in (("ci-1", "--prefix", "ci-"), ("--prefix", "ci-", "--if-match", "1")):
            assert "--prefix goes with neither" in cli.error(command, *options, *STAGING, code=2)
        assert "Name a session" in cli.error(command, *STAGING, code=2)
        assert "prefix must have" in cli.error(command, "--prefix", "", *STAGING, code=2)
        assert "The state is set" in cli.error(command, "--prefix", "ci-2", "--views", "1", *STAGING, code=8)
        assert cli.json("get", "ci-1", *STAGING)["label"] == "x"

    def test_more_than_one_call_changes_are_changed(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk_operations, "MAX_CHANGED", 2)
        for number in range(5):
            cli("put", f"ci-{number}", *STAGING)

        assert cli.json("delete", *STAGING, "--prefix", "ci-")["count"] == 5

    def test_a_failure_after_the_first_call_says_what_was_changed(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bulk_operations, "MAX_CHANGED", 2)
        for number in range(5):
            cli("put", f"ci-{number}", *STAGING)
        delete_prefix, left = Environment.delete_prefix, iter([True])

        def fail_later(*arguments: Any, **terms: Any) -> Any:
            if next(left, False):
                return delete_prefix(*arguments, **terms)
            raise StoreUnavailableError("Redis is away.")

        monkeypatch.setattr(Environment, "delete_prefix", fail_later)
        error = cli.error("delete", *STAGING, "--prefix", "ci-", code=5)
        assert "Redis is away. Deleted 2 sessions before" in error
        assert "Redis is away." in cli.error("delete", *STAGING, "--prefix", "ci-", code=3)
        assert len(cli.json("list", *STAGING)["sessions"]) == 3

    def test_preconditions(self, cli: Cli) -> None:
        cli("put", "ci-42", *STAGING, "--create")
        assert "is at revision 1" in cli.error("put", "ci-42", *STAGING, "--create", code=4)
        cli("put", "ci-42", *STAGING, "--if-match", "1", "--label", "a")
        assert "is at revision 2" in cli.error("put", "ci-42", *STAGING, "--if-match", '"1"', code=4)
        cli("reset", "ci-42", *STAGING, "--if-match", '"2"')
        cli.error("delete", "ci-42", *STAGING, "--if-match", "2", code=4)
        cli("delete", "ci-42", *STAGING, "--if-match", "*")
        assert "--if-match takes a revision" in cli.error("delete", "ci-42", *STAGING, "--if-match", "x", code=2)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (("--scenario", "x"), "is not a scenario id"),
            (("--override", "x"), "is not an override id"),
            (("--label", "x" * 201), "at most 200"),
            (("--global-delay-ms", "120001"), "between 0 and 120000"),
            (("--label", "x", "--clear-label"), "either --label or --clear-label"),
            (("--scenario", "scn_x", "--clear-scenario"), "either --scenario or --clear-scenario"),
            (("--override", "ovr_x", "--no-overrides"), "either --override or --no-overrides"),
            (("--default-ttl", "0"), "--default-ttl must be"),
            (("--lease", "100"), "--lease must be"),
        ],
    )
    def test_bad_input_changes_nothing(self, cli: Cli, options: tuple[str, ...], reason: str) -> None:
        assert reason in cli.error("put", "ci-42", *STAGING, *options, code=2)
        cli.error("get", "ci-42", *STAGING, code=1)

    def test_lists_sessions_page_by_page(self, cli: Cli) -> None:
        for n in range(5):
            cli("put", f"s{n}", *STAGING, "--override", "ovr_a")
        # A page says how to get the next
        page = cli("list", *STAGING, "--limit", "2")
        assert len(page.stdout.splitlines()) == 3
        assert "--cursor" in page.stderr
        first = cli.json("list", *STAGING, "--limit", "3")
        second = cli.json("list", *STAGING, "--limit", "3", "--cursor", first["nextCursor"])
        assert second["nextCursor"] is None
        keys = {session["sessionKey"] for session in first["sessions"] + second["sessions"]}
        # --all lists the same sessions
        every = cli.json("list", *STAGING, "--limit", "2", "--all")
        assert {session["sessionKey"] for session in every["sessions"]} == keys == {f"s{n}" for n in range(5)}
        assert every["nextCursor"] is None
        assert "limit must be" in cli.error("list", *STAGING, "--limit", "101", code=2)

    def test_the_only_registered_environment_is_chosen(self, cli: Cli, store: SessionStore) -> None:
        assert "none is registered" in cli.error("get", "ci-42", "-p", "checkout", code=2)
        store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}}})
        assert cli.json("put", "ci-42", "-p", "checkout")["environment"] == "staging"
        store.project("checkout").apply_catalog({"project": "checkout", "environments": {"qa": {}}})
        assert "it has qa, staging" in cli.error("get", "ci-42", "-p", "checkout", code=2)
        assert "no environment 'prod'" in cli.error("get", "ci-42", "-p", "checkout", "-e", "prod", code=1)

    def test_escapes_control_characters(self, cli: Cli) -> None:
        cli("put", "ci-42", *STAGING, "--label", "a\x1b[31mb\nc\x9b")
        for command in (("get", "ci-42"), ("list",)):
            assert "a\\x1b[31mb\\nc\\x9b" in cli(*command, *STAGING).stdout

    def test_views_lists_the_live_views(self, cli: Cli, store: SessionStore) -> None:
        # Given one live view, which has applied a write
        with store.environment("checkout", "staging").view():
            cli("put", "ci-42", *STAGING)

            # When views are listed, then its process and its revision are shown
            (place,) = cli.json("views", *STAGING)["environments"]
            (view,) = place["views"]
            assert (view["pid"], view["appliedRevision"], view["lag"]) == (os.getpid(), 1, 0)
            assert 0 < view["leaseLeftMs"] <= 2000
            table = cli("views", *STAGING).stdout
            assert re.search(rf"^checkout +staging +{view['id']} .* {os.getpid()} ", table, re.MULTILINE)

        # When it is closed, then it is not listed
        assert cli.json("views", *STAGING)["environments"][0]["views"] == []
        assert re.search("^checkout +staging +-", cli("views", *STAGING).stdout, re.MULTILINE)

    def test_views_lists_all_environments_of_all_projects(self, cli: Cli, store: SessionStore) -> None:
        # Given registered environments, a view of a misspelt project, and a session key that looks like a lease
        store.project("checkout").apply_catalog({"project": "checkout", "environments": {"staging": {}, "qa": {}}})
        store.environment("checkout", "staging").put("x:leases")
        cli.environment["SESSIONSTORE_PROJECT"] = "checkout"
        with store.environment("checkouts", "staging").view():
            # When all views are listed, then the misspelt one is among them
            listed = {
                (place["project"], place["environment"]): len(place["views"])
                for place in cli.json("views")["environments"]
            }
            assert listed == {("checkout", "qa"): 0, ("checkout", "staging"): 0, ("checkouts", "staging"): 1}

    def test_views_says_if_it_may_not_scan(self, cli: Cli, own_redis: RedisServer) -> None:
        with own_redis.client() as client:
            client.execute_command("ACL", "SETUSER", "weak", "on", ">pass", "~*", "&*", "+@all", "-scan")
        cli.environment["SESSIONSTORE_REDIS_URL"] = own_redis.url.replace("//", "//weak:pass@", 1)
        message = cli.error("views", code=3)
        assert message.startswith("sessionstore: The environments can't be listed: Redis denies this user the command")

    def test_views_says_what_to_do_if_redis_is_down(self, cli: Cli) -> None:
        cli.environment["SESSIONSTORE_REDIS_URL"] = "redis://localhost:1"
        message = cli.error("views", code=3)
        assert message == "sessionstore: Redis can't be reached; nothing was changed, try again later."

    def test_views_lists_all_environments_of_an_embedded_store(self, cli: Cli, embedded_server: EmbeddedServer) -> None:
        url = embedded_server.listen()
        cli.environment = {"SESSIONSTORE_REDIS_URL": url}
        with SessionStore.from_url(url) as store, store.environment("checkout", "staging").view():
            [place] = cli.json("views")["environments"]
        assert (place["project"], place["environment"], len(place["views"])) == ("checkout", "staging", 1)

    def test_views_of_an_environment_need_its_project(self, cli: Cli) -> None:
        assert "with --project" in cli.error("views", "-e", "staging", code=2)


def test_corrupt_session_is_named_in_the_list_and_delete_removes_it(
    cli: Cli, shared_redis: RedisServer, prefix: str
) -> None:
    cli("put", "bad", *STAGING)
    cli("put", "good", *STAGING)
    with shared_redis.client() as behind:
        behind.hset(f"{prefix}:{{checkout}}:staging:s:bad", "rev", "nan")

    listed = cli("list", *STAGING, "--all")
    assert "good" in listed.stdout
    assert "bad" not in listed.stdout
    assert "The record of 'bad' is corrupt" in listed.stderr
    assert "corrupt" in cli.error("get", "bad", *STAGING, code=6)

    cli("delete", "bad", *STAGING)
    assert cli("list", *STAGING).stderr == ""


class TestKeys:
    @pytest.mark.parametrize("options", [("--expires-in", "999999w"), ("--expires-at", "9999-12-31T23:59:59-14:00")])
    def test_rejects_an_expiry_after_the_year_9999(self, cli: Cli, options: tuple[str, ...]) -> None:
        assert "year 9999" in cli.error("keys", "create", "ci", *options, code=2)
        assert cli.json("keys", "list") == {"keys": []}

    def test_create_prints_the_key_once_and_alone(self, cli: Cli) -> None:
        # When a key is created, then standard output holds only the key
        created = cli("keys", "create", "nightly", "--project", "checkout", "--expires-in", "90d")
        secret = created.stdout.strip()
        assert re.fullmatch(r"fmk_[A-Za-z0-9_-]{43}", secret)
        assert secret not in created.stderr
        assert "opens project checkout until 20" in created.stderr
        # Then no command shows it again
        assert secret not in cli("keys", "list", "--all").stdout
        assert secret not in json.dumps(cli.json("keys", "list", "--all"))

    def test_corrupt_record_is_named_and_revoking_removes_it(
        self, cli: Cli, shared_redis: RedisServer, prefix: str
    ) -> None:
        cli("keys", "create", "sound")
        with shared_redis.client() as behind:
            behind.hset(f"{prefix}:keys", 64 * "a", "nonsense")

        listed = cli("keys", "list")
        assert "sound" in listed.stdout
        command = listed.stderr.strip().rpartition("Remove it: sessionstore ")[2]
        cli(*command.split())

        assert cli("keys", "list").stderr == ""

    def test_keys_are_listed_and_revoked(self, cli: Cli) -> None:
        first = cli.json("keys", "create", "first")
        second = cli.json("keys", "create", "second", "--expires-at", "2200-01-31")
        assert first["key"].startswith("fmk_")
        assert (first["project"], second["expiresAt"]) == (None, "2200-01-31T00:00:00.000Z")
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT[0-9:.]{12}Z", first["createdAt"])
        assert first["lastUsedAt"] is None

        assert "Revoked" in cli("keys", "revoke", first["id"]).stderr
        # Revoking again succeeds
        assert cli.json("keys", "revoke", first["id"])["status"] == "revoked"
        assert [key["name"] for key in cli.json("keys", "list")["keys"]] == ["second"]
        assert {key["name"]: key["status"] for key in cli.json("keys", "list", "--all")["keys"]} == {
            "first": "revoked",
            "second": "active",
        }
        table = cli("keys", "list").stdout
        assert re.search(rf"{second['id']}  second  \(every\)  active  .*  2200-01-31 00:00:00Z  -", table)

    @pytest.mark.parametrize(
        ("arguments", "code", "reason"),
        [
            (("create", ""), 2, "needs a name"),
            (("create", "x", "--project", "a:b"), 2, "not a slug"),
            (("create", "x", "--expires-in", "soon"), 2, "--expires-in must be"),
            (("create", "x", "--expires-in", "0s"), 2, "in the past"),
            (("create", "x", "--expires-at", "2001-01-01"), 2, "in the past"),
            (("create", "x", "--expires-at", "tomorrow"), 2, "--expires-at takes"),
            (("create", "x", "--expires-at", "2200-01-01", "--expires-in", "1d"), 2, "either"),
            (("create", "x", "--max-active", "1001"), 2, "from 1 to 1000"),
            (("revoke", "000000000000"), 1, "no API key"),
            (("revoke", "fmk_hunter2"), 2, "by its id"),
        ],
    )
    def test_errors(self, cli: Cli, arguments: tuple[str, ...], code: int, reason: str) -> None:
        line = cli.error("keys", *arguments, code=code)
        assert reason in line
        assert "hunter2" not in line


class TestCatalog:
    def test_applying_an_empty_catalog_document_changes_nothing(self, cli: Cli, store: SessionStore) -> None:
        store.environment("checkout", "staging").put("ci-42", overrides=["ovr_any"])

        cli("catalog", "apply", "-", stdin=b'{"project": "checkout", "environments": {}}')

        assert store.project("checkout").environments() == ()
        assert cli.json("get", "ci-42", *STAGING)["overrides"] == ["ovr_any"]

    def test_the_documented_example_is_applied_as_documented(self, cli: Cli, tmp_path: Path) -> None:
        # When the example is compared, applied and compared again
        cli("catalog", "diff", str(CATALOG), code=1)
        applied = cli("catalog", "apply", str(CATALOG))
        cli("catalog", "diff", str(CATALOG))

        # Then the page shows this output, and the page's shorter document is valid
        page = (ROOT / "docs" / "catalog.md").read_text(encoding="utf-8")
        assert f"$ sessionstore catalog apply examples/catalog.toml\n{applied.stdout}```" in page
        shorter = tmp_path / "shorter.toml"
        shorter.write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
        cli("catalog", "diff", str(shorter), code=1)

    def test_show_prints_a_document_to_apply(self, cli: Cli) -> None:
        cli("catalog", "apply", str(CATALOG))
        shown = cli("catalog", "show", "-p", "checkout", "--json").stdout
        assert cli("catalog", "apply", "-", stdin=shown.encode()).stdout.count("unchanged") == 2
        table = cli("catalog", "show", *STAGING).stdout
        assert re.search("staging +local mock +ovr_cardDeclined +The card is declined", table)
        assert "giftCard" not in table

    def test_shows_no_project_that_has_registered_nothing(self, cli: Cli) -> None:
        for place in (("-p", "other"), ("-p", "other", "-e", "staging")):
            assert "Project 'other' has registered no environment" in cli.error("catalog", "show", *place, code=1)

    def test_a_document_of_another_project_needs_create(self, cli: Cli, store: SessionStore) -> None:
        cli.environment["SESSIONSTORE_PROJECT"] = "checkouts"
        refusal = cli.error("catalog", "apply", str(CATALOG), code=2)
        assert "about project 'checkout', not 'checkouts' (--project, SESSIONSTORE_PROJECT)" in refusal
        assert "--create" in refusal
        assert store.project("checkout").environments() == ()
        cli("catalog", "apply", str(CATALOG), "--create")
        cli("catalog", "apply", str(CATALOG), "--project", "checkout")

    def test_an_apply_reports_sessions_and_prunes(self, cli: Cli, tmp_path: Path) -> None:
        # Given a session on the example
        cli("catalog", "apply", str(CATALOG))
        cli("put", "ci-42", *STAGING, "--override", "ovr_extraMock")
        # When a document lacks the mock and the other environment
        less = tmp_path / "less.JSON"
        less.write_text('{"project": "checkout", "environments": {"staging": {}}}')
        planned = cli.json("catalog", "diff", str(less), code=1)
        told = cli("catalog", "diff", str(less), code=1)
        assert told.stderr == "1 live session would lose removed mocks and scenarios.\n"
        # Then a script must say that it means it
        refused = cli("catalog", "apply", str(less), code=2)
        assert (refused.stdout, re.findall(r"- mock +(\S+)", refused.stderr)) == (
            "",
            ["ovr_extraMock", "ovr_slowSearch"],
        )
        assert "1 live session would lose removed mocks and scenarios; nothing was changed." in refused.stderr
        assert cli.json("get", "ci-42", *STAGING)["overrides"] == ["ovr_extraMock"]
        done = cli("catalog", "apply", str(less), "--yes")
        # And the report has both
        assert done.stderr == "Deactivated removed mocks and scenarios in 1 session.\n"
        assert re.search("staging +changed", done.stdout)
        assert re.search(r"- mock +ovr_extraMock", done.stdout)
        assert re.search("production-mirror +left alone", done.stdout)
        assert planned["leftAlone"] == ["production-mirror"]
        assert planned["environments"][0]["mocksRemoved"] == ["ovr_extraMock", "ovr_slowSearch"]
        assert cli.json("get", "ci-42", *STAGING)["overrides"] == []
        # When an apply prunes, then it removes the other environment
        report = cli.json("catalog", "apply", str(less), "--prune")
        assert [(entry["environment"], entry["change"]) for entry in report["environments"]] == [
            ("staging", "unchanged"),
            ("production-mirror", "removed"),
        ]

    @pytest.mark.parametrize(
        ("name", "text", "reason"),
        [
            ("a.toml", "project =", "a.toml: The document is not valid TOML"),
            ("a.json", '{"project": "p", "environments": {"e": {"x": 1}}}', "a.json: environments.e: Object contains"),
            ("a.yaml", "", "a.yaml: a document is a .json or .toml file"),
            (None, "", "missing.toml: No such file or directory."),
        ],
    )
    def test_errors(self, cli: Cli, tmp_path: Path, name: str | None, text: str, reason: str) -> None:
        path = tmp_path / (name or "missing.toml")
        if name is not None:
            path.write_text(text)
        for command in ("apply", "diff"):
            assert reason in cli.error("catalog", command, str(path), code=2)


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (SessionNotFoundError("x"), 1),
            (ValueError, 2),
            (StoreUnavailableError("x"), 3),
            (PreconditionFailedError("x"), 4),
            (OutcomeUnknownError("x"), 5),
            (NotEffectiveError("x"), 5),
            (CorruptDataError("x"), 6),
            (TooFewViewsError("x"), 8),
        ],
    )
    def test_each_kind_has_its_exit_code(self, error: Any, code: int) -> None:
        if error is ValueError:
            error = next(kind for kind in _all_errors(SessionStoreError) if issubclass(kind, ValueError))("x")
        assert exit_code(error) == code

    def test_a_command_needs_a_redis_url(self, cli: Cli) -> None:
        cli.environment["SESSIONSTORE_REDIS_URL"] = ""
        stderr = cli("get", "ci-42", *STAGING, code=2).stderr
        assert "--redis-url" in stderr
        assert "SESSIONSTORE_REDIS_URL" in stderr

    @pytest.mark.parametrize(
        ("url", "code"),
        [
            ("redis://:hunter2@127.0.0.1:{port}/0", 3),
            ("redis://:hunter2@127.0.0.1:x/0", 2),
            ("redis://:hunter2@127.0.0.1:1/x", 2),
            ("http://:hunter2@127.0.0.1", 2),
            ("redis://:hunter2@[", 2),
        ],
    )
    def test_reports_an_unreachable_redis_and_an_invalid_url(self, cli: Cli, url: str, code: int) -> None:
        for command in (("get", "ci-42", *STAGING), ("keys", "list"), ("watch", *STAGING)):
            error = cli.error(*command, "--redis-url", url.format(port=free_port()), code=code)
            assert "hunter2" not in error

    def test_usage(self, cli: Cli) -> None:
        assert "--project" in cli("get", "ci-42", code=2).stderr
        assert "No such option" in cli("get", "ci-42", "--what", code=2).stderr
        assert "No such command" in cli("what", code=2).stderr
        for command in ((), ("keys",), ("catalog",), ("keys", "create"), ("put",)):
            assert "Usage: sessionstore" in cli(*command, "--help").stdout
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", cli("--version").stdout)

    def test_options_before_the_command_are_explained(self, cli: Cli) -> None:
        for option in ("--redis-url", "-p", "--environment"):
            assert "Options follow the command" in cli(option, "x", "get", "ci-42", code=2).stderr

    def test_an_unknown_variable_is_one_warning_that_names_the_nearest(self, cli: Cli) -> None:
        cli.environment |= {"SESSIONSTORE_PROJCT": "checkout", "SESSIONSTORE_SERVICE_HOST": "10.0.0.1"}
        stderr = cli("list", *STAGING).stderr
        assert stderr == (
            "The variable SESSIONSTORE_PROJCT is unknown and has no effect; did you mean SESSIONSTORE_PROJECT?\n"
        )

    def test_a_time_takes_a_unit(self, cli: Cli, store: SessionStore) -> None:
        cli("put", "ci-42", *STAGING, "--default-ttl", "30m")
        session = store.environment("checkout", "staging").get("ci-42")
        assert session is not None
        assert session.expires_at - session.created_at == 1_800_000
        message = cli.error("put", "ci-42", *STAGING, "--default-ttl", "400d", code=2)
        assert message == "sessionstore: --default-ttl must be a time from 0.001s to 366d, such as 90s, 30m, 12h or 1d."

    def test_every_variable_is_in_the_help(self, cli: Cli) -> None:
        shown = cli("put", "--help").stdout
        for name in ("REDIS_URL", "PREFIX", "PROJECT", "ENVIRONMENT", "TTL", "LEASE"):
            assert f"SESSIONSTORE_{name}" in shown


def _all_errors(kind: type[SessionStoreError]) -> Iterator[type[SessionStoreError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _all_errors(child)


class TestOutput:
    def test_columns_are_as_wide_as_their_cells(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("A", "LONG"), [("x", None), ("日本", ("a", "b")), ("e\u0301", "")])
        assert capsys.readouterr().out == "A     LONG\nx     -\n日本  a, b\ne\u0301     -\n"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [("Zürich 🔑", "Zürich 🔑"), ("a\tb", "a\\tb"), ("\x1b[0m", "\\x1b[0m"), ("\u202e", "\\u202e")],
    )
    def test_plain_text_has_no_control_characters(self, text: str, shown: str) -> None:
        assert plain(text) == shown


def change(rev: int, id_: str, prev: str, kind: str = "delete", **fields: Any) -> Change:
    body = {"type": kind, "rev": rev, "id": id_, "prev": prev, "at": 1_782_216_000_123, "sessionKey": "ci-42", **fields}
    return decode_change(json.dumps(body))


class TestHistory:
    def test_follows_the_next_change(self) -> None:
        history = History()
        assert history.start(HeadReply(0, 7, "a"))
        assert history.follow(change(8, "b", "a"))
        assert history.follow(change(9, "c", "b"))

    @pytest.mark.parametrize(
        "next_", [change(9, "c", "a"), change(8, "c", "x"), change(7, "a", "z"), change(1, "a", "")]
    )
    def test_every_other_change_is_a_gap(self, next_: Change) -> None:
        history = History()
        history.start(HeadReply(0, 7, "a"))
        assert not history.follow(next_)
        # It follows the chain from this change on
        assert history.follow(change(next_.rev + 1, "n", next_.id))

    def test_a_change_from_before_the_head_was_read_is_no_gap(self) -> None:
        history = History()
        late = change(7, "a", "z")
        history.start(HeadReply(late.at, 7, "a"))
        assert history.follow(late)
        assert history.follow(change(8, "b", "a"))

    def test_a_new_connection_detects_changes_missed_meanwhile(self) -> None:
        history = History()
        history.start(HeadReply(0, 7, "a"))
        history.follow(change(8, "b", "a"))
        assert history.start(HeadReply(0, 8, "b"))
        assert not history.start(HeadReply(0, 9, "c"))
        assert not history.start(HeadReply(0, 9, "other"))


SESSION = {
    "sessionKey": "ci-42",
    "rev": 9,
    "label": None,
    "scenario": None,
    "overrides": [],
    "globalDelayMs": 0,
    "globalDelayMaxMs": 0,
    "createdAt": 1,
    "lastSeenAt": 1,
    "expiresAt": 2,
}


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        ("delete", {}, "12:00:00.123  #9  delete   ci-42"),
        ("set", {"session": SESSION}, "12:00:00.123  #9  set      ci-42"),
        (
            "set",
            {
                "session": SESSION
                | {"scenario": "scn_x", "overrides": ["ovr_a", "ovr_b"], "globalDelayMs": 5, "label": "a\x1bb"}
            },
            '12:00:00.123  #9  set      ci-42 scenario=scn_x overrides=ovr_a,ovr_b delay=5ms label="a\\x1bb"',
        ),
        ("set", {"session": SESSION | {"globalDelayMaxMs": 9}}, "12:00:00.123  #9  set      ci-42 delay=0-9ms"),
        (
            "expiry",
            {"sessions": [["ci-42", 1_782_216_000_000, 1]]},
            "12:00:00.123  #9  expiry   ci-42 until 2026-06-23T12:00:00Z",
        ),
        ("catalog", {"catalog": None}, "12:00:00.123  #9  catalog  taken away"),
        (
            "catalog",
            {"catalog": {"mocks": [{"id": "ovr_a", "name": "A"}], "scenarios": []}},
            "12:00:00.123  #9  catalog  1 mock, 0 scenarios",
        ),
    ],
)
def test_prints_a_change_on_one_line(kind: str, fields: dict[str, Any], line: str) -> None:
    assert describe(change(9, "b", "a", kind, **fields)) == line


@contextmanager
def process(server: RedisServer, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The real command, in its own process."""
    with subprocess.Popen(
        [sys.executable, "-m", "sessionstore.cli", *arguments],
        env={**os.environ, "SESSIONSTORE_REDIS_URL": server.url, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it becomes true"
        time.sleep(0.01)


def watchers(server: RedisServer) -> int:
    channel = "ss:{checkout}:staging:changes"
    with server.client() as client:
        return int(client.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1])


class TestProcesses:
    @pytest.mark.parametrize(("answer", "kept"), [("y\n", []), ("n\n", ["ovr_extraMock"])])
    def test_apply_asks_at_a_terminal_before_it_deactivates(
        self, shared_redis: RedisServer, prefix: str, tmp_path: Path, answer: str, kept: list[str]
    ) -> None:
        less = tmp_path / "less.json"
        less.write_text('{"project": "checkout", "environments": {"staging": {}}}')
        with SessionStore.from_url(shared_redis.url, prefix=prefix, lease_s=0.1) as store:
            staging = store.environment("checkout", "staging")
            staging.put("ci-42", overrides=["ovr_extraMock"])
            parent, child = os.openpty()
            try:
                os.write(parent, answer.encode())
                done = subprocess.run(
                    [sys.executable, "-m", "sessionstore.cli", "catalog", "apply", str(less)],
                    env={**os.environ, "SESSIONSTORE_REDIS_URL": shared_redis.url, "SESSIONSTORE_PREFIX": prefix},
                    stdin=child, capture_output=True, text=True, timeout=30, check=False,
                )  # fmt: skip
            finally:
                os.close(parent)
                os.close(child)
            assert "1 live session would lose removed mocks and scenarios. Apply? [y/N]" in done.stderr
            assert done.returncode == (1 if kept else 0)
            session = staging.get("ci-42")
        assert session is not None
        assert list(session.overrides) == kept

    def test_watch_prints_changes_until_it_is_interrupted(self, own_redis: RedisServer) -> None:
        # Given a watcher
        with (
            process(own_redis, "watch", *STAGING, "--json") as watch,
            SessionStore.from_url(own_redis.url, lease_s=0.1) as store,
        ):
            assert watch.stdout is not None
            assert watch.stderr is not None
            await_true(lambda: watchers(own_redis) == 1)
            staging = store.environment("checkout", "staging")

            # When sessions change, then it prints each change
            staging.put("ci-42", overrides=["ovr_a"], wait=False)
            printed = json.loads(watch.stdout.readline())
            assert (printed["type"], printed["rev"], printed["session"]["overrides"]) == ("set", 1, ["ovr_a"])
            staging.delete("ci-42", wait=False)
            assert json.loads(watch.stdout.readline())["type"] == "delete"

            # When its connection breaks and it misses no change, then it continues
            with own_redis.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            assert "Lost touch" in watch.stderr.readline()
            assert watch.stderr.readline() == "In touch with Redis again.\n"
            store.project("checkout").apply_catalog(
                {"project": "checkout", "environments": {"staging": {}}}, wait=False
            )
            assert json.loads(watch.stdout.readline())["type"] == "catalog"

            # When Redis is emptied, then revisions start again, and it reports a gap
            with own_redis.client() as client:
                client.flushall()
            staging.put("ci-42", wait=False)
            assert json.loads(watch.stdout.readline()) == {"type": "gap"}
            assert watch.stderr.readline() == "Changes may be missing here.\n"
            assert json.loads(watch.stdout.readline())["rev"] == 1

            # When Redis restarts empty, then it reports a gap
            own_redis.kill()
            assert "Lost touch" in watch.stderr.readline()
            own_redis.start()
            assert watch.stderr.readline() == "In touch with Redis again.\n"
            assert json.loads(watch.stdout.readline()) == {"type": "gap"}
            assert watch.stderr.readline() == "Changes may be missing here.\n"
            staging.put("ci-43", wait=False)
            assert json.loads(watch.stdout.readline())["session"]["sessionKey"] == "ci-43"

            # When it is interrupted, then it exits with 0 and prints nothing
            watch.send_signal(signal.SIGINT)
            assert watch.wait(10) == 0
            assert watch.stderr.read() == ""

    def test_an_error_is_one_line_without_a_traceback(self, own_redis: RedisServer) -> None:
        own_redis.stop()
        with process(own_redis, "get", "ci-42", *STAGING) as get:
            out, err = get.communicate(timeout=20)
        assert (get.returncode, out) == (3, "")
        assert err == "sessionstore: Redis can't be reached; nothing was changed, try again later.\n"

    def test_watch_exits_when_its_output_is_closed(self, own_redis: RedisServer) -> None:
        with process(own_redis, "watch", *STAGING) as watch, SessionStore.from_url(own_redis.url) as store:
            assert watch.stdout is not None
            await_true(lambda: watchers(own_redis) == 1)
            watch.stdout.close()
            staging = store.environment("checkout", "staging")
            staging.put("ci-42")
            await_true(lambda: watch.poll() is not None)
            assert watch.stderr is not None
            assert (watch.returncode, watch.stderr.read()) == (7, "")

    def test_escapes_what_the_output_cannot_encode(
        self, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
        with process(own_redis, "put", "ci-42", *STAGING, "--label", "snow ☃") as put:
            out, err = put.communicate(timeout=20)
        assert put.returncode == 0, err
        assert "snow \\u2603" in out

    def test_reports_a_closed_standard_input(self, own_redis: RedisServer) -> None:
        done = subprocess.run(
            [
                "bash",
                "-c",
                '"$0" -m sessionstore.cli catalog apply - --redis-url "$1" <&-',
                sys.executable,
                own_redis.url,
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (2, "sessionstore: -: standard input is closed.\n")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_reports_a_full_disk(self, own_redis: RedisServer) -> None:
        command = [sys.executable, "-m", "sessionstore.cli", "keys", "list", "--redis-url", own_redis.url]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        assert done.returncode == 7
        assert done.stderr == "sessionstore: The output could not be written: No space left on device.\n"

    def test_serve_passes_its_options_through(self, shared_redis: RedisServer) -> None:
        with process(shared_redis, "serve", "--help") as serve:
            out, err = serve.communicate(timeout=20)
        assert (serve.returncode, err) == (0, "")
        assert out.startswith("usage: sessionstore serve")
        with process(shared_redis, "serve", "--port", "x") as serve:
            out, err = serve.communicate(timeout=20)
        assert serve.returncode == 2
        assert "--port: must be a port" in err
