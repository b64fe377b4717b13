from pathlib import Path

import httpx

from sessionstore import Environment, SessionStore, parse_catalog_document


def test_a_declined_payment(proxy: httpx.Client, session_store: SessionStore, staging: Environment) -> None:
    document = parse_catalog_document(Path("examples/catalog.toml").read_bytes(), "toml")
    session_store.project("checkout").apply_catalog(document)

    staging.put("ci-42", scenario="scn_paymentDeclined")

    assert proxy.get("/pay", headers={"x-flowmock-session": "ci-42"}).status_code == 402
    assert proxy.get("/pay").status_code == 200
