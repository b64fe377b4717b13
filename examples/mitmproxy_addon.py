"""Mocks for mitmproxy. To run it: mitmdump -s examples/mitmproxy_addon.py, with the options of docs/proxies.md"""

from mitmproxy import http

from sessionstore.contrib.mitmproxy import SessionStoreAddon


class Mocks:
    def request(self, flow: http.HTTPFlow) -> None:
        session = flow.metadata["mock_session"]
        if session is None:
            return  # the request goes on to the server
        catalog = sessions.view and sessions.view.catalog  # None if the environment has none
        mocks = [mock.id for mock in catalog.active_mocks(session)] if catalog else session.overrides
        if "ovr_cardDeclined" in mocks:
            flow.response = http.Response.make(402, b"declined")


sessions = SessionStoreAddon()
addons = [sessions, Mocks()]
