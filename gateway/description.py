"""How a call is declared: beside its handler, once, for the router and the API's document alike.

A call takes the query parameters that it declares, and no others. `openapi` derives everything that follows from a
declaration or a route, such as the errors of a bad session key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]

H = TypeVar("H", bound=Callable[..., Awaitable[Response]])


class Operation(Struct, frozen=True, kw_only=True):
    """One call, as a decorator of its handler. The first line of the handler's docstring is its summary.

    Attributes
    ----------
    answer : type or str
        Body of a 200: a Struct, or a media type.
    query : tuple of str
        Names of its query parameters.
    headers : tuple of str
        Request headers that it reads, besides those of every call.
    body : type or None
        Type of the request's body; `example` is one such body.
    errors : tuple of str
        Error codes that the other attributes do not imply.
    """

    answer: type[Struct] | str
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    body: type[Struct] | None = None
    example: object = None
    errors: tuple[str, ...] = ()

    def __call__(self, handler: H) -> H:
        """Attach the declaration to a handler."""
        vars(handler)["operation"] = self
        return handler


class Resource(Struct, frozen=True):
    """The calls of one path, by method; `secured` ones ask for a key."""

    path: str
    handlers: Mapping[str, Handler]
    secured: bool


def operation_of(handler: Handler) -> Operation:
    """Return a handler's declaration."""
    operation: Operation = handler.operation  # type: ignore[attr-defined]  # `__call__` has set it
    return operation
