"""An asyncio proxy. To run it: uvicorn --app-dir examples proxy:app --port 8081"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sessionstore import AsyncSessionStore

REDIS = os.environ.get("SESSIONSTORE_REDIS_URL", "redis://localhost:6379/0")
MOCKS = {"ovr_cardDeclined": ({"error": "The card is declined."}, 402)}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with (
        AsyncSessionStore.from_url(REDIS) as store,
        # wait=False: serve requests even before Redis is there
        store.environment("checkout", "staging").view(wait=False) as app.state.view,
    ):
        yield


async def respond(request: Request) -> JSONResponse:
    view = request.app.state.view
    session = view.get_by_header(request.headers.get("x-flowmock-session"))
    if session and view.catalog:
        for mock in view.catalog.active_mocks(session):
            if mock.id in MOCKS:
                return JSONResponse(*MOCKS[mock.id])
    return JSONResponse({"paid": True})  # a real proxy forwards the request to staging


app = Starlette(routes=[Route("/{path:path}", respond)], lifespan=lifespan)
