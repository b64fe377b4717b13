"""The events around a violation, for a person to read."""

from __future__ import annotations

from .history import Fault, History, Looks, Stall, Write
from .validators import Violation

__all__ = ["trace_of"]

#: Seconds before and after the violation that a trace shows.
_BEFORE_S, _AFTER_S = 4.0, 1.0
#: Lines of a trace.
_LINES = 120


def trace_of(history: History, violation: Violation) -> str:
    """The events of the violation's key and observer, in the order in which they began."""
    since, until = violation.at - _BEFORE_S, violation.at + _AFTER_S
    lines: list[tuple[float, str]] = [
        (fault.started, _span(violation, fault) + _of_fault(fault))
        for fault in history.faults
        if fault.started < until and fault.ended > since
    ]
    lines += [
        (write.started, _span(violation, write) + _of_write(write))
        for write in history.writes
        if write.key == violation.key and write.started < until and write.ended > since
    ]
    lines += [
        (
            looks.first_began,
            f"{looks.first_began - violation.at:+9.4f} … {looks.last_ended - violation.at:+9.4f}  {_of(looks)}",
        )
        for looks in history.looks
        if looks.key == violation.key
        and looks.observer == violation.who
        and looks.first_began < until
        and looks.last_ended > since
    ]
    process = violation.who.partition("/")[0]
    lines += [
        (stall.started, _span(violation, stall) + f"{stall.process} did not run")
        for stall in history.stalls
        if stall.process == process and stall.started < until and stall.ended > since
    ]
    lines.sort()
    # The look-ups next to the violation matter most.
    if len(lines) > _LINES:
        nearest = sorted(range(len(lines)), key=lambda index: abs(lines[index][0] - violation.at))[:_LINES]
        lines = [lines[index] for index in sorted(nearest)]
    head = f"{violation.rule}: {violation.who} {violation.what} ({violation.key}, at {violation.at:.4f})"
    return "\n".join([head, *(f"  {line}" for _, line in lines), ""])


def _span(violation: Violation, what: Write | Fault | Stall) -> str:
    return f"{what.started - violation.at:+9.4f} … {what.ended - violation.at:+9.4f}  "


def _of_fault(fault: Fault) -> str:
    lost = "" if fault.loses == "nothing" else f", loses {fault.loses}"
    return f"FAULT {fault.kind} {fault.target} {fault.detail}{lost}".rstrip()


def _of_write(write: Write) -> str:
    what = "delete" if write.deletes else f"put {write.token}"
    existed = "" if write.existed is None else f", existed {write.existed}"
    return (
        f"WRITE {what} by {write.writer}: {write.outcome}, revision {write.revision}{existed} {write.detail}".rstrip()
    )


def _of(looks: Looks) -> str:
    state = f"revision {looks.revision} {looks.token}" if looks.revision else "no session"
    return f"{looks.count} look-ups: {state}"
