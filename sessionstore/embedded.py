"""A store in this process's memory, for a try and for tests: fakeredis instead of Redis.

State is lost when the process ends. Everything but speed and durability is as on Redis; the scripts are the same.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .errors import SessionStoreError

if TYPE_CHECKING:
    import redis
    import redis.asyncio


class EmbeddedServer:
    """What a Redis server is elsewhere: stores made on it share its state.

    With `listen`, other processes can connect too, on the loopback interface only. That way in is slow (it looks for
    input each 10 ms) and has no password.
    """

    def __init__(self) -> None:
        try:
            from fakeredis import FakeServer
        except ImportError as exc:
            raise SessionStoreError(
                "The embedded store needs fakeredis; install sessionstore[embedded], or give the URL of a Redis."
            ) from exc
        self._server = FakeServer()
        self._tcp: Any = None
        self._thread: threading.Thread | None = None

    def client(self) -> redis.Redis:
        """A client for threads, in this process."""
        import fakeredis

        return fakeredis.FakeRedis(server=self._server)

    def async_client(self) -> redis.asyncio.Redis:
        """A client for asyncio, in this process."""
        import fakeredis

        return fakeredis.FakeAsyncRedis(server=self._server)

    def listen(self, port: int = 0) -> str:
        """Let other processes connect, on 127.0.0.1; returns the URL. Port 0 takes a free one."""
        from fakeredis import TcpFakeServer

        self._tcp = TcpFakeServer(("127.0.0.1", port))
        self._tcp.fake_server = self._server
        self._tcp.daemon_threads = True
        self._tcp.RequestHandlerClass = _patient(self._tcp.RequestHandlerClass)
        self._thread = threading.Thread(target=self._tcp.serve_forever, name="embedded-redis", daemon=True)
        self._thread.start()
        return f"redis://127.0.0.1:{self._tcp.server_address[1]}/0"

    def close(self) -> None:
        """Stop listening and drop the connections."""
        if self._thread is not None:
            self._tcp.shutdown()
            self._thread.join()
            self._tcp.server_close()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _patient(handler: Any) -> Any:
    """Let fakeredis's connection handler live on after an error reply, as Redis does: NOSCRIPT is one of them."""
    from redis.exceptions import ResponseError

    class PatientHandler(handler):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            read = self.current_client.read_response

            def read_response(*args: Any, **kwargs: Any) -> Any:
                try:
                    return read(*args, **kwargs)
                except ResponseError as exc:
                    return exc

            self.current_client.read_response = read_response

    return PatientHandler
