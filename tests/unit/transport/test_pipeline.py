"""The order of calls on one connection, without a connection."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError as RedisConnectionError,
    InvalidResponse,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    TryAgainError,
)

from sessionstore.errors import OutcomeUnknownError, SessionStoreError, StoreUnavailableError
from sessionstore.protocol.calls import Call
from sessionstore.protocol.scripts import load_script
from sessionstore.transport.pipeline import MAX_SENT, MAX_WAITING, Pipeline
from sessionstore.transport.resp import evalsha, evaluate, pack

DEADLINE_S = 2.0


def call(name: str, *, writes: bool = False, script: str = "get") -> Call[Any]:
    return Call(load_script(script), (name,), (), lambda payload: payload, writes=writes)


class Calls:
    """A pipeline, and the answers of its calls by name."""

    def __init__(self) -> None:
        self.pipeline = Pipeline(DEADLINE_S)
        self.calls: dict[str, Call[Any]] = {}
        self.answers: dict[str, Future[Any]] = {}

    def submit(self, *names: str, at: float = 0.0, writes: bool = False) -> None:
        for name in names:
            self.calls[name], self.answers[name] = call(name, writes=writes), Future()
            self.pipeline.submit(self.calls[name], self.answers[name], at)

    def send(self, at: float = 0.0) -> list[str]:
        """The names of the calls that leave, with a star where the script's text leaves with them."""
        names = {pack(evalsha(item)): name for name, item in self.calls.items()}
        names |= {pack(evaluate(item)): f"{name}*" for name, item in self.calls.items()}
        return [names[command] for command in self.pipeline.take(at)]

    def reply(self, *replies: Any, at: float = 0.0) -> None:
        for reply in replies:
            self.pipeline.replied(reply, at)

    def results(self) -> dict[str, Any]:
        """What the calls were answered, and their errors by class."""
        results = {name: answer.result() for name, answer in self.answers.items() if answer.done()}
        return {name: type(result) if isinstance(result, Exception) else result for name, result in results.items()}


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_calls_leave_together_in_order_and_are_answered_in_order(calls: Calls) -> None:
    calls.submit("a", "b", "c")
    assert calls.send() == ["a", "b", "c"]
    calls.submit("d")
    calls.reply("A", "B")
    assert calls.send() == ["d"]
    calls.reply("C", "D")

    assert calls.results() == {"a": "A", "b": "B", "c": "C", "d": "D"}
    assert not calls.pipeline.has_sent
    assert not calls.pipeline.has_waiting()


def test_what_is_given_up_after_it_was_sent_keeps_its_place(calls: Calls) -> None:
    calls.submit("a", "b", "c")
    calls.send()

    assert calls.answers["b"].cancel()
    calls.reply("A", "B", "C")

    del calls.answers["b"]
    assert calls.results() == {"a": "A", "c": "C"}


def test_what_is_given_up_before_it_was_sent_is_never_sent(calls: Calls) -> None:
    calls.submit("a", "b", writes=True)
    assert calls.answers["a"].cancel()
    assert calls.send() == ["b"]

    calls.submit("c")
    assert calls.answers["c"].cancel()
    assert not calls.pipeline.has_waiting()


def test_an_error_reply_fails_its_call_only(calls: Calls) -> None:
    calls.submit("a", "b", "c", writes=True)
    calls.send()

    calls.reply(OutOfMemoryError("x"), BusyLoadingError("x"), "C")

    assert calls.results() == {"a": StoreUnavailableError, "b": StoreUnavailableError, "c": "C"}


def test_a_reply_to_no_command_is_no_answer(calls: Calls) -> None:
    calls.submit("a")
    calls.send()
    calls.reply("A")

    with pytest.raises(InvalidResponse):
        calls.reply("B")


class TestMisrouting:
    @pytest.fixture
    def calls(self) -> Calls:
        calls = Calls()
        calls.pipeline = Pipeline(DEADLINE_S, reroutes=True)
        return calls

    def test_a_misrouted_call_waits_for_the_next_connection_ahead_of_the_others(self, calls: Calls) -> None:
        calls.submit("a", "b", "c", writes=True)
        calls.send()
        calls.submit("d", writes=True)
        moved = MovedError("7 host:1")

        calls.reply("A", moved)
        # Nothing more is sent to this server, and what was sent is answered
        assert calls.send() == []
        with pytest.raises(MovedError):
            calls.reply(moved)
        calls.pipeline.lost(moved)
        assert calls.pipeline.is_delayed
        assert calls.send() == ["b", "c", "d"]
        assert not calls.pipeline.is_delayed
        calls.reply("B", "C", "D")

        assert calls.results() == {"a": "A", "b": "B", "c": "C", "d": "D"}

    def test_a_call_that_was_served_after_a_misrouted_one_is_answered(self, calls: Calls) -> None:
        calls.submit("a", "b")
        calls.send()
        again = TryAgainError("x")

        calls.reply(again)
        with pytest.raises(TryAgainError):
            calls.reply("B")
        assert calls.results() == {"b": "B"}

    def test_what_is_lost_with_the_connection_is_not_what_was_misrouted(self, calls: Calls) -> None:
        calls.submit("a", "b", writes=True)
        calls.send()
        calls.reply(MovedError("7 host:1"))

        calls.pipeline.lost(RedisConnectionError())

        assert calls.results() == {"b": OutcomeUnknownError}
        assert calls.send() == ["a"]

    def test_the_next_server_may_not_know_the_script(self, calls: Calls) -> None:
        calls.submit("a")
        calls.send()
        calls.reply(NoScriptError("x"))
        assert calls.send() == ["a*"]
        with pytest.raises(MovedError):
            calls.reply(MovedError("7 host:1"))
        calls.pipeline.lost(MovedError("7 host:1"))

        assert calls.send() == ["a"]
        calls.reply(NoScriptError("x"))
        assert calls.send() == ["a*"]
        calls.reply("A")
        assert calls.results() == {"a": "A"}

    def test_a_call_that_was_misrouted_until_its_deadline_changed_nothing(self, calls: Calls) -> None:
        calls.submit("a", writes=True)
        calls.send()
        with pytest.raises(MovedError):
            calls.reply(MovedError("7 host:1"))
        calls.pipeline.lost(MovedError("7 host:1"))

        assert calls.pipeline.expire_at() == DEADLINE_S
        calls.pipeline.expire(DEADLINE_S)

        error = calls.answers["a"].result()
        assert type(error) is StoreUnavailableError
        assert "is moving its data; nothing was changed, try again later" in str(error)

    def test_a_call_that_could_not_be_sent_until_its_deadline(self, calls: Calls) -> None:
        calls.submit("a", "b", writes=True)
        calls.pipeline.delayed(RedisConnectionError())
        calls.pipeline.expire(DEADLINE_S)
        assert "can't be reached" in str(calls.answers["a"].result())

        calls.submit("c", at=0.0)
        calls.pipeline.delayed(RedisConnectionError())
        assert calls.send(DEADLINE_S) == []
        assert "can't be reached" in str(calls.answers["c"].result())

    def test_at_a_fixed_address_it_is_an_error(self) -> None:
        calls = Calls()
        calls.submit("a", "b")
        calls.send()

        calls.reply(MovedError("7 host:1"), "B")

        assert calls.results() == {"a": StoreUnavailableError, "b": "B"}
        assert "redis+cluster://" in str(calls.answers["a"].result())


class TestDeadlines:
    def test_count_from_the_submission_of_each_call(self, calls: Calls) -> None:
        calls.submit("early", at=0.0, writes=True)
        calls.send(0.0)
        calls.submit("late", at=1.0, writes=True)
        calls.submit("read", at=1.0)
        calls.send(1.9)
        assert calls.pipeline.expire_at() == 2.0

        calls.pipeline.expire(2.0)
        assert calls.results() == {"early": OutcomeUnknownError}

        # Then the reply that comes late is dropped, and the next one is the next call's
        calls.reply("EARLY", "LATE", at=2.5)
        assert calls.results() == {"early": OutcomeUnknownError, "late": "LATE"}

        assert calls.pipeline.expire_at() == 3.0
        calls.pipeline.expire(3.0)
        assert calls.results()["read"] is StoreUnavailableError

    def test_what_was_not_sent_in_time_is_never_sent(self, calls: Calls) -> None:
        calls.submit("a", writes=True)
        calls.pipeline.expire(2.0)
        calls.submit("b", at=0.5, writes=True)

        assert calls.send(2.5) == []
        assert calls.results() == {"a": StoreUnavailableError, "b": StoreUnavailableError}
        assert calls.pipeline.expire_at() == float("inf")

    def test_a_connection_is_silent_when_a_reply_is_late_and_no_other_came_lately(self, calls: Calls) -> None:
        calls.submit("a", "b")
        calls.send()
        assert not calls.pipeline.expire(1.99)
        assert calls.pipeline.expire(2.0)

        # A slow one is not
        calls.reply("A", at=1.5)
        assert not calls.pipeline.expire(2.0)
        assert calls.pipeline.expire_at() == 2.5
        assert calls.pipeline.expire(2.5)

    def test_a_connection_on_which_callers_give_up_again_and_again_is_silent_too(self, calls: Calls) -> None:
        for number in range(20):
            calls.submit(str(number), at=number / 10)
            calls.send(number / 10)
            calls.answers[str(number)].cancel()

        assert calls.pipeline.expire_at() == 2.0
        assert calls.pipeline.expire(2.0)

    def test_what_has_just_been_sent_has_time_for_its_reply(self, calls: Calls) -> None:
        calls.submit("a", at=0.0)
        calls.send(1.9)

        assert not calls.pipeline.expire(2.0)
        assert calls.pipeline.expire_at() == 2.9


class TestConnectionsThatEnd:
    def test_what_was_sent_fails_and_what_waits_is_sent_on_the_next(self, calls: Calls) -> None:
        calls.submit("write", writes=True)
        calls.submit("read")
        calls.send()
        calls.submit("later", writes=True)

        calls.pipeline.lost(RedisConnectionError("gone"))

        assert calls.results() == {"write": OutcomeUnknownError, "read": StoreUnavailableError}
        assert isinstance(calls.answers["read"].result().__cause__, RedisConnectionError)
        assert calls.send() == ["later"]

    def test_without_a_connection_what_waits_fails(self, calls: Calls) -> None:
        calls.submit("write", "again", writes=True)
        calls.send()
        calls.reply("WRITE", NoScriptError())
        calls.submit("other", writes=True)

        calls.pipeline.refused(ConnectionRefusedError())

        assert calls.results() == {"write": "WRITE", "again": StoreUnavailableError, "other": StoreUnavailableError}
        assert "nothing was changed" in str(calls.answers["again"].result())
        assert not calls.pipeline.has_waiting()


class TestForgottenScripts:
    def test_their_calls_are_sent_again_ahead_of_those_that_wait(self, calls: Calls) -> None:
        calls.submit("a", "b", "c")
        calls.send()
        calls.submit("d")
        calls.reply(NoScriptError(), "B", NoScriptError())
        assert calls.pipeline.has_waiting()

        # Then the text leaves once
        assert calls.send() == ["a*", "c", "d"]
        calls.reply("A", "C", "D")
        assert calls.results() == {"a": "A", "b": "B", "c": "C", "d": "D"}

    def test_one_that_is_forgotten_again_is_sent_again(self, calls: Calls) -> None:
        calls.submit("a", "b")
        calls.send()
        calls.reply(NoScriptError(), NoScriptError())
        assert calls.send() == ["a*", "b"]
        calls.reply("A", NoScriptError())
        assert calls.send() == ["b*"]
        calls.reply("B")

        assert calls.results() == {"a": "A", "b": "B"}

    def test_one_that_redis_does_not_even_know_by_its_text_fails(self, calls: Calls) -> None:
        calls.submit("a")
        calls.send()
        calls.reply(NoScriptError())
        calls.send()
        calls.reply(NoScriptError("NOSCRIPT"))

        assert issubclass(calls.results()["a"], SessionStoreError)
        assert not calls.pipeline.has_waiting()

    def test_one_that_was_given_up_or_is_late_is_not_sent_again(self, calls: Calls) -> None:
        calls.submit("a", "b", "c", writes=True)
        calls.send()
        calls.answers.pop("a").cancel()
        calls.reply(*[NoScriptError()] * 3)
        calls.pipeline.expire(2.0)

        assert calls.send(2.0) == []
        assert calls.results() == {"b": StoreUnavailableError, "c": StoreUnavailableError}


class TestBounds:
    def test_a_call_too_many_fails_and_the_others_are_served(self, calls: Calls) -> None:
        calls.submit(*map(str, range(MAX_WAITING)))
        calls.submit("one more", writes=True)

        assert calls.results() == {"one more": StoreUnavailableError}
        assert "nothing was changed" in str(calls.answers["one more"].result())

    def test_so_many_are_under_way_at_most(self, calls: Calls) -> None:
        names = [str(number) for number in range(MAX_SENT + 2)]
        calls.submit(*names)

        assert calls.send() == names[:MAX_SENT]
        assert calls.send() == []
        # A call that was given up counts too: its reply is yet to come
        assert calls.answers["0"].cancel()
        assert calls.send() == []
        calls.reply("0")
        assert calls.send() == [names[MAX_SENT]]

    def test_what_can_not_be_packed_fails_its_caller_only(self, calls: Calls) -> None:
        calls.submit("a")
        with pytest.raises(UnicodeEncodeError):
            calls.pipeline.submit(call("\ud800"), Future(), 0.0)

        assert calls.send() == ["a"]


#: What happens next; numbers choose among the calls.
steps = st.one_of(
    st.tuples(st.just("submit"), st.booleans()),
    st.tuples(st.just("give up"), st.integers(0, 50)),
    st.tuples(st.just("send"), st.just(0)),
    st.tuples(st.just("run"), st.integers(1, 4)),
    st.tuples(st.just("hear"), st.integers(1, 4)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("cut"), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 1.5])),
)


class World:
    """A pipeline, and a server that runs what was sent, in order, and knows the scripts whose texts it has seen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pipeline = Pipeline(DEADLINE_S)
        self.calls: list[tuple[str, bool, float, Future[Any]]] = []
        self.given_up: set[str] = set()
        self.known: set[str] = set()
        #: how often each call ran; and what is on the way to the server and back
        self.ran: dict[str, int] = {}
        self.requests: deque[bytes] = deque()
        self.replies: deque[Any] = deque()

    def step(self, name: str, value: Any) -> None:
        getattr(self, name.replace(" ", "_"))(value)
        if self.pipeline.expire(self.now):
            self.cut(0)
        for key, _, submitted_at, answer in self.calls:
            assert answer.done() or self.now < submitted_at + DEADLINE_S, f"{key} is late"

    def submit(self, writes: bool) -> None:
        key = f"key-{len(self.calls)}"
        answer: Future[Any] = Future()
        self.calls.append((key, writes, self.now, answer))
        self.pipeline.submit(call(key, writes=writes, script="put" if writes else "get"), answer, self.now)

    def give_up(self, index: int) -> None:
        if index < len(self.calls) and self.calls[index][3].cancel():
            self.given_up.add(self.calls[index][0])

    def send(self, _: int) -> None:
        self.requests += self.pipeline.take(self.now)

    def run(self, count: int) -> None:
        for _ in range(min(count, len(self.requests))):
            command, script, _, key = self.requests.popleft().decode().split("\r\n")[2::2]
            if command == "EVAL":
                self.known.add(_SHAS[script])
            elif script not in self.known:
                self.replies.append(NoScriptError())
                continue
            self.ran[key] = self.ran.get(key, 0) + 1
            self.replies.append(f"about {key}")

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.replies))):
            self.pipeline.replied(self.replies.popleft(), self.now)

    def flush(self, _: int) -> None:
        self.known.clear()

    def cut(self, _: int) -> None:
        """Some of what was sent may run, and no reply comes."""
        self.requests.clear()
        self.replies.clear()
        self.pipeline.lost(RedisConnectionError())

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def check(self) -> None:
        for key, writes, _, answer in self.calls:
            ran = self.ran.get(key, 0)
            assert ran <= 1, f"{key} ran {ran} times"
            if key in self.given_up or not answer.done():
                continue
            result = answer.result()
            if isinstance(result, OutcomeUnknownError):
                assert writes
            elif isinstance(result, StoreUnavailableError):
                assert not (writes and ran), f"{key} was changed, and its caller was told otherwise"
            else:
                assert (result, ran) == (f"about {key}", 1)


_SHAS = {load_script(name).text: load_script(name).sha for name in ("put", "get")}


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(steps, max_size=60))
def test_whatever_happens_each_answer_is_its_calls_own(sequence: list[tuple[str, Any]]) -> None:
    world = World()
    for step in sequence:
        world.step(*step)
    world.check()

    # And in the end each call has its answer
    for _ in range(4 * len(world.calls)):
        for step in (("send", 0), ("run", 100), ("hear", 100)):
            world.step(*step)
    world.check()
    assert all(answer.done() for _, _, _, answer in world.calls)
    assert not world.pipeline.has_sent
