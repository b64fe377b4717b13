"""What the API's document says of a call: declared beside its handler, and nowhere else.

The declaration is also what the gateway goes by: a call takes the query parameters that it declares, and no others.
What follows by itself from a route (its errors for a bad session key, say) is not declared but derived, in `openapi`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from msgspec import Struct

from .exchange import Exchange, Reply

__all__ = ["Handler", "Link", "Operation", "describe", "operation_of"]

Handler = Callable[[Exchange], Awaitable[Reply]]

H = TypeVar("H", bound=Callable[..., Awaitable[Reply]])


class Link(Struct, frozen=True):
    """What can be called next, by its operation's id, and where its parameters are found in this call."""

    operation: str
    parameters: Mapping[str, str]


class Operation(Struct, frozen=True, kw_only=True):
    """One call; its summary is the first line of the handler's docstring.

    Attributes
    ----------
    answer : type or str
        Of the body of a 200: a Struct, or a media type.
    example : object
        Such a body.
    query : tuple of str
        The parameters that it takes, by name.
    headers : tuple of str
        Those that it minds, besides those that every call does.
    body : type or None
        Of the request's body, and `body_example` is one.
    answer_headers : tuple of str
        What a 200 always has.
    errors : tuple of str
        Codes, besides those that follow from the route.
    links : mapping
        By name.
    """

    answer: type[Struct] | str
    example: object = None
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    body: type[Struct] | None = None
    body_example: object = None
    answer_headers: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    links: Mapping[str, Link] = {}


def describe(operation: Operation) -> Callable[[H], H]:
    """Declare what a handler does."""

    def attach(handler: H) -> H:
        vars(handler)["operation"] = operation
        return handler

    return attach


def operation_of(handler: Handler) -> Operation:
    """What was declared of a handler."""
    operation: Operation = handler.operation  # type: ignore[attr-defined]  # a function has what it is given
    return operation
