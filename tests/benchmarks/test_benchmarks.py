"""Each benchmark runs in small, and its results can be plotted and described. No test asserts a measurement."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import dataset, report
from benchmarks.bench_capacity import Load, Units, bearable_writes, reckon
from benchmarks.document import find_page, update
from benchmarks.plots import PLOTS, draw
from benchmarks.report import Bar
from sessionstore import SessionStore

from ..conftest import require_redis_server
from ..support.coverage import unmeasured
from ..support.redis_server import RedisServer

ROOT = Path(report.__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", PLOTS)
def test_a_benchmark_runs_and_its_results_are_drawn_and_described(name: str, tmp_path: Path) -> None:
    require_redis_server()

    # When it runs
    command = [sys.executable, "-m", f"benchmarks.bench_{name}", "--quick", "--results", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=unmeasured(), capture_output=True, text=True, timeout=50, check=False)

    # Then it reports for each bar whether it is met, and a missed bar is no failure
    assert ended.returncode == 0, ended.stderr
    document: dict[str, Any] = msgspec.json.decode((tmp_path / f"{name}.json").read_bytes())
    bars = msgspec.convert(document["results"]["bars"], list[Bar])
    assert bars
    assert all(str(bar) in ended.stdout for bar in bars)
    assert document["machine"]["redis-server"]

    # And the same results give the same plot
    first = draw(document, tmp_path / "benchmarks").read_bytes()
    assert draw(document, tmp_path / "benchmarks").read_bytes() == first
    assert re.search(rb"<dc:date>|file://", first) is None

    # And the page changes only in their place
    page = tmp_path / "benchmarks.md"
    before = find_page(DOCS, name).read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    update(page, document, tmp_path / "benchmarks" / f"{name}.svg")
    after = page.read_text(encoding="utf-8")
    results = document["results"]
    assert results["rows"]
    for row in results["rows"]:
        assert ("|".join(row) in after) == (row[0] not in results["off_page"])
    assert _without(name, after) == _without(name, before)


def test_a_benchmark_without_a_place_in_the_pages() -> None:
    with pytest.raises(LookupError, match=r"docs has no place for the benchmark 'nonsense': add the lines"):
        find_page(DOCS, "nonsense")


def test_check_fails_if_a_bar_is_missed(tmp_path: Path) -> None:
    met, missed = Bar("p50", 2.0, 1.9), Bar("rate", 0.9, 0.8, at_least=True)
    parser = report.arguments_parser(None, rounds=1)

    def conclude(bar: Bar, *arguments: str) -> int:
        found = report.Report("", ["what"], [["it"]], [bar])
        return report.conclude("any", {}, found, parser.parse_args([*arguments, "--results", str(tmp_path)]))

    assert [conclude(bar, "--check") for bar in (met, missed)] == [0, 1]
    assert conclude(missed) == 0
    recorded = Bar("PUT", None, 0.5)
    assert conclude(recorded, "--check") == 0
    assert (recorded.met, str(recorded)) == (None, "PUT: 0.50 ×, recorded")
    assert (str(met), str(missed)) == ("p50 ≤ 2 ×: 1.90 ✔", "rate ≥ 0.9 ×: 0.80 ✘ missed")


def test_a_loaded_session_has_the_form_of_the_librarys(own_redis: RedisServer) -> None:
    # Given sessions that the benchmarks' script wrote
    with own_redis.client() as client:
        dataset.load_sessions(client, dataset.environment_keys(), 3)
        with SessionStore.from_url(own_redis.url) as store:
            environment = store.environment(dataset.PROJECT, dataset.ENVIRONMENT)
            loaded = environment.get("ci-1")
            assert loaded is not None

            # When the library writes one with the same properties
            written = environment.put(
                "by-hand",
                label=loaded.label,
                scenario=loaded.scenario,
                overrides=loaded.overrides,
                global_delay_ms=loaded.global_delay_ms,
                wait=False,
            )

            # Then both have the same fields, and its revision follows the loaded ones
            keys = dataset.environment_keys()
            times = {b"rev", b"createdAt", b"lastSeenAt", b"expiresAt", b"modifiedAt"}
            hashes: list[Any] = [client.hgetall(keys.session(key)) for key in ("ci-1", "by-hand")]
            assert hashes[0].keys() == hashes[1].keys() > times
            assert {f: v for f, v in hashes[0].items() if f not in times} == {
                f: v for f, v in hashes[1].items() if f not in times
            }
            assert (loaded.revision, written.revision) == (2, 4)
            assert [session.session_key for session in environment.list().sessions][:1] == ["by-hand"]


def test_what_proxies_need_is_a_product_of_the_unit_costs() -> None:
    units = Units(
        write_us=40,
        read_us=20,
        message_us=20,
        proxy_us=100,
        touch_us=8,
        session_bytes=500,
        proxy_bytes=40_000,
        message_bytes=400,
        proxy_connections=2,
    )
    need = reckon(units, Load(projects=1_000, proxies=100, writes=20, sessions=1_000, looked_up=10))
    assert (need.messages, need.connections) == (2_000_000, 200_000)
    assert (need.bytes_sent, need.memory_bytes) == (800e6, 4.5e9)
    assert list(need.cores.values()) == pytest.approx([0.8, 40, 10, 8])
    assert need.shards == 118
    # Connections fill a shard sooner than calls.
    assert reckon(units, Load(projects=1, proxies=10_001, writes=0, sessions=0, looked_up=0)).shards == 3
    assert bearable_writes(units, 10) == pytest.approx(0.5e6 / 240)


def _without(name: str, text: str) -> str:
    return re.sub(f"(?s)<!-- {name}: begin.*?<!-- {name}: end -->", "", text)
