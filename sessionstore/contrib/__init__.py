"""Integrations with proxies and frameworks. Each needs its own package installed."""
