"""Logs as JSON, one object a line, on standard error."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec


def with_cause(error: Exception) -> str:
    """Join an error's sentence and its cause, which the caller must not see."""
    cause = error.__cause__
    return str(error) if cause is None else f"{error} ({type(cause).__name__}: {cause})"


class JSONFormatter(logging.Formatter):
    """A record as JSON: time, level, logger, message, the record's ``fields``, and its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        document: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(document, enc_hook=repr).decode()


def configure_logging(level: str) -> None:
    """Send all logs of `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
