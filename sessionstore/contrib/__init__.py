"""Ready-made ways into proxies and frameworks; each needs the package that it is for."""
