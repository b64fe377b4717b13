"""API keys: records, the gateway's copy of them, and the operations on them."""
