"""All errors of this library, as one tree.

::

    SessionStoreError
    ├── InvalidInputError (also a ValueError)   the caller's input; nothing was changed
    │   ├── InvalidSessionKeyError              empty after normalising, or holds control characters
    │   ├── InvalidSlugError                    a malformed project or environment
    │   ├── InvalidFieldError                   a property out of its bounds
    │   ├── InvalidOverrideError                an override id that is malformed, unknown or scenario-local
    │   ├── InvalidScenarioError                a scenario id that is malformed or unknown
    │   ├── InvalidQueryError                   a limit, cursor or similar parameter
    │   ├── InvalidCatalogError                 a catalog document that can't be applied
    │   └── TooManyApiKeysError                 the limit of active API keys is reached
    ├── NotFoundError
    │   ├── SessionNotFoundError
    │   ├── OverrideNotFoundError
    │   ├── EnvironmentNotFoundError
    │   └── ApiKeyNotFoundError
    ├── PreconditionFailedError                 if_match or if_none_match did not hold; nothing was changed
    ├── QuotaExceededError                      the write would exceed a quota; nothing was changed
    ├── AccessDeniedError                       over HTTP: the API key is invalid, or for another project
    ├── RateLimitedError                        over HTTP: the API key is over its rate limit
    ├── StoreUnavailableError                   Redis can't be reached, or refuses
    │   ├── OutcomeUnknownError                 … after a write was sent: it may or may not have been applied
    │   └── NotEffectiveError                   … after a write was committed: views may not serve it yet
    ├── TooFewViewsError                        the state is set, and fewer views than asked for reported it
    ├── NotDurableError                         the state is set, and fewer replicas than asked for have it
    ├── CorruptDataError                        Redis holds data that this library did not write
    │   └── CorruptSessionError                 … as the record of one session
    ├── IncompatibleLayoutError                 Redis holds the data of another release's layout
    ├── StoreClosedError                        used after close, or after a fork
    └── StaleView                               a view without a lease, opened with on_stale="raise"

Every class has the ``code`` of the HTTP API's answer.
"""

from __future__ import annotations


class SessionStoreError(Exception):
    """The root of this library's errors. The message says what happened and what to do."""

    code: str = "internal_error"
    #: the mock or scenario that the catalog lacks
    unknown: str | None = None


class InvalidInputError(SessionStoreError, ValueError):
    """The caller's input can't be used; nothing was changed."""

    code = "invalid_body"


class InvalidSessionKeyError(InvalidInputError):
    """A session key is empty after normalising, or holds control characters."""

    code = "invalid_session_key"


class InvalidSlugError(InvalidInputError):
    """The name of a project or environment is no slug."""

    code = "invalid_query"


class InvalidFieldError(InvalidInputError):
    """A property of a session is out of its bounds."""


class InvalidOverrideError(InvalidInputError):
    """An override id is malformed, not in the catalog, or belongs to a scenario."""

    code = "invalid_override"


class InvalidScenarioError(InvalidInputError):
    """A scenario id is malformed or not in the catalog."""

    code = "invalid_scenario"


class InvalidQueryError(InvalidInputError):
    """A limit, a cursor or a similar parameter can't be used."""

    code = "invalid_query"


class InvalidCatalogError(InvalidInputError):
    """A catalog document can't be applied; the message names the place in it."""


class TooManyApiKeysError(InvalidInputError):
    """The limit of active API keys is reached; revoke one first."""


class NotFoundError(SessionStoreError):
    """The call names something that does not exist."""

    code = "not_found"


class SessionNotFoundError(NotFoundError):
    """There is no such session, or it has expired."""


class OverrideNotFoundError(NotFoundError):
    """There is no such published mock."""


class EnvironmentNotFoundError(NotFoundError):
    """The project has registered environments, but not this one."""


class ApiKeyNotFoundError(NotFoundError):
    """There is no API key with this id."""


class PreconditionFailedError(SessionStoreError):
    """``if_match`` or ``if_none_match`` did not hold; nothing was changed."""

    code = "precondition_failed"


class QuotaExceededError(SessionStoreError):
    """A write would exceed a quota of an environment or project; nothing was changed. Deleting sessions makes room."""

    code = "quota_exceeded"


class AccessDeniedError(SessionStoreError):
    """Over HTTP: the API key is missing, invalid, revoked or expired, or does not open this project."""

    code = "unauthorized"


class RateLimitedError(SessionStoreError):
    """Over HTTP: the API key is over its rate limit; nothing was changed."""

    code = "rate_limited"


class StoreUnavailableError(SessionStoreError):
    """Redis can't be reached, is loading, is out of memory, is read-only, or did not answer in time."""

    code = "store_unavailable"


class OutcomeUnknownError(StoreUnavailableError):
    """A write was sent, and its answer was lost: it was applied whole or not at all. A PUT is safe to repeat."""

    code = "outcome_unknown"


class NotEffectiveError(StoreUnavailableError):
    """A write was committed, but the wait for the views failed: some may not serve it yet.

    Attributes
    ----------
    revision : int or None
        The session's committed revision; None for a deletion and for a catalog.
    """

    code = "not_effective"

    def __init__(self, message: str, revision: int | None = None) -> None:
        super().__init__(message)
        self.revision = revision


class TooFewViewsError(SessionStoreError):
    """A write has taken effect, but fewer live views than it asked for have reported it. The state is set.

    Attributes
    ----------
    revision : int or None
        The session's revision; None for a deletion.
    confirmed, expired : int
        Live views that have reported the write, and views whose lease expired during the wait.
    """

    code = "too_few_views"

    def __init__(self, message: str, revision: int | None = None, confirmed: int = 0, expired: int = 0) -> None:
        super().__init__(message)
        self.revision = revision
        self.confirmed = confirmed
        self.expired = expired


class NotDurableError(SessionStoreError):
    """A write was committed, but fewer replicas than it asked for had it in time: a failover may lose it.

    Sending it again waits again.

    Attributes
    ----------
    revision : int or None
        The session's committed revision; None for a deletion and for a catalog.
    replicas : int
        Replicas that had the write.
    """

    code = "not_durable"

    def __init__(self, message: str, revision: int | None = None, replicas: int = 0) -> None:
        super().__init__(message)
        self.revision = revision
        self.replicas = replicas


class CorruptDataError(SessionStoreError):
    """Redis holds data under our keys that this library did not write."""


class CorruptSessionError(CorruptDataError):
    """The record of one session is corrupt. Deleting the session removes it.

    Attributes
    ----------
    session_key : str
    """

    def __init__(self, message: str, session_key: str) -> None:
        super().__init__(message)
        self.session_key = session_key


class IncompatibleLayoutError(SessionStoreError):
    """An environment's data in Redis has another layout than this release reads and writes; nothing was changed."""


class StoreClosedError(SessionStoreError):
    """The store or view was closed, or belongs to the process that this one was forked from."""


class StaleView(SessionStoreError):  # noqa: N818  a state of the view rather than a fault
    """A view can't prove that it is current, and was opened with ``on_stale="raise"``."""

    code = "store_unavailable"
