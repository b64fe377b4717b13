"""An ASGI application with the middleware. To run it: uvicorn --app-dir examples asgi_app:app --port 8081"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sessionstore import AsyncSessionStore
from sessionstore.contrib.asgi import SessionMiddleware

store = AsyncSessionStore.from_url(os.environ.get("SESSIONSTORE_REDIS_URL", "redis://localhost:6379/0"))
view = store.environment("checkout", "staging").view(wait=False)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with store, view:
        yield


async def pay(request: Request) -> JSONResponse:
    session = request.state.mock_session  # a Session, or None
    return JSONResponse({"session": session and session.session_key})


app = Starlette(
    routes=[Route("/pay", pay)],
    middleware=[Middleware(SessionMiddleware, view=view, delay=True)],
    lifespan=lifespan,
)
