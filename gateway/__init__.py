"""The HTTP API over a session store."""
