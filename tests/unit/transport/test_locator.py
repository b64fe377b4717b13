"""One question at a time about where the primaries are, and answers for all who wait."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait

import pytest
import redis.exceptions as redis_errors

from sessionstore.transport import locator as locators
from sessionstore.transport.locator import Locator
from sessionstore.transport.topology import Address


class FakeDirectory:
    """It answers when it is let."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.answers = threading.Semaphore(0)
        self.error: Exception | None = None
        self.closed = 0
        self.questions = 0

    def ask(self) -> None:
        self.questions += 1
        self.asked.release()
        assert self.answers.acquire(timeout=20)
        if self.error is not None:
            raise self.error

    def primaries(self) -> list[Address]:
        return [("a", self.questions)]

    def find(self, tag: str) -> Address:
        return tag, self.questions

    def remap(self, address: Address) -> Address:
        return address

    def forget(self) -> None:
        self.questions = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> FakeDirectory:
    monkeypatch.setattr(locators, "PAUSE_S", 0.0)
    return FakeDirectory()


@pytest.fixture
def locator(directory: FakeDirectory) -> Locator:
    return Locator(directory)


def ask(locator: Locator, since: float = -1.0) -> Future[None]:
    answer = locator.news_since(since)
    assert answer is not None
    return answer


def test_everyone_waits_for_one_answer(locator: Locator, directory: FakeDirectory) -> None:
    answers = {ask(locator) for _ in range(20)}

    assert len(answers) == 1
    directory.answers.release()
    [answer] = answers
    answer.result(20)
    assert locator.news_since(-1.0) is None
    assert locator.find("checkout") == ("checkout", 1)


def test_a_doubt_is_younger_than_a_question_that_was_asked_before(locator: Locator, directory: FakeDirectory) -> None:
    first = ask(locator)
    assert directory.asked.acquire(timeout=20)
    doubted_at = time.monotonic()
    assert ask(locator, doubted_at) is first
    directory.answers.release()
    first.result(20)

    # The answer is known, but it may be older than the doubt
    second = ask(locator, doubted_at)
    assert second is not first
    directory.answers.release()
    second.result(20)
    assert locator.news_since(doubted_at) is None


def test_one_who_gives_up_does_not_end_it_for_the_others(locator: Locator, directory: FakeDirectory) -> None:
    answer = ask(locator)
    assert not answer.cancel()
    directory.answers.release()
    answer.result(20)


def test_after_a_failure_the_next_one_asks_again(locator: Locator, directory: FakeDirectory) -> None:
    directory.error = ConnectionRefusedError()
    directory.answers.release()
    with pytest.raises(ConnectionRefusedError):
        ask(locator).result(20)

    directory.error = None
    directory.answers.release()
    ask(locator).result(20)
    assert directory.questions == 2


def test_an_error_is_that_of_the_node(locator: Locator, directory: FakeDirectory) -> None:
    refusal = redis_errors.AuthenticationError("x")
    wrapped = redis_errors.RedisClusterException("host:1 can't be reached")
    wrapped.__cause__ = redis_errors.RedisClusterException("Cluster mode is not enabled on this node")
    wrapped.__cause__.__context__ = refusal
    directory.error = wrapped
    directory.answers.release()
    with pytest.raises(redis_errors.AuthenticationError) as caught:
        ask(locator).result(20)
    assert caught.value is refusal


def test_any_other_error_means_that_the_cluster_was_not_reached(locator: Locator, directory: FakeDirectory) -> None:
    directory.error = redis_errors.RedisClusterException("startup_nodes could not agree")
    directory.answers.release()
    with pytest.raises(redis_errors.ConnectionError):
        ask(locator).result(20)


def test_questions_have_a_pause_in_between(directory: FakeDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(locators, "PAUSE_S", 5.0)
    monkeypatch.setattr(time, "sleep", pauses.append)
    now = 100.0
    locator = Locator(directory, lambda: now)
    for at in (100.0, 103.0, 120.0):
        now = at
        directory.answers.release()
        ask(locator, at).result(20)

    assert pauses == [0.0, 2.0, 0.0]


def test_closed_while_a_question_is_under_way(locator: Locator, directory: FakeDirectory) -> None:
    answer = ask(locator)
    locator.close()
    directory.answers.release()
    wait([answer], 20)

    # The connections that the answer came on are closed too
    assert directory.closed == 2


def test_a_forked_process_asks_anew(locator: Locator, directory: FakeDirectory) -> None:
    # Given a question that the parent's thread asks
    before = ask(locator)
    assert directory.asked.acquire(timeout=20)

    locators._after_fork()
    after = ask(locator)

    assert after is not before
    assert directory.asked.acquire(timeout=20)
    directory.answers.release(2)
    wait([before, after], 20)
    assert locator.news_since(-1.0) is None
