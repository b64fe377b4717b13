"""Hostile input, generated from a seed, against a running gateway on Redis and on the embedded store.

``python -m tests.hostile`` runs all of it, `test_sample` a part. Each module has one kind of attack: what it sends, and
an oracle that judges the answers without the gateway's code.
"""
