"""A certificate for servers that talk TLS. One file holds it and its key: servers and clients present it, and trust no
other.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlencode

from .checkout import require_program

__all__ = ["OTHER_HOST", "client_options", "make_certificate", "secure", "server_options"]

#: An address that servers with a certificate listen on, too. The certificate is not for it.
OTHER_HOST = "127.0.0.2"


def make_certificate(folder: Path) -> str:
    """Make a self-signed one for 127.0.0.1; returns the file."""
    file = str(folder / "redis.pem")
    command = [require_program("openssl", "openssl"), *["req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=x"]]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True)
    with Path(file).open("a") as both:
        both.write(Path(f"{file}.crt").read_text())
    return file


def client_options(file: str) -> dict[str, str]:
    """redis-py's options for a certificate."""
    return {"ssl_ca_certs": file, "ssl_certfile": file, "ssl_keyfile": file}


def secure(url: str, file: str | None) -> str:
    """The URL of a server, with a certificate if it has one."""
    return url if file is None else f"{url.replace('redis', 'rediss', 1)}?{urlencode(client_options(file))}"


def server_options(file: str, port: int) -> dict[str, str]:
    """Options of a Redis that talks TLS only, to other servers too."""
    return {
        "port": "0",
        "tls_port": str(port),
        "bind": f"127.0.0.1 {OTHER_HOST}",
        "tls_cert_file": file,
        "tls_key_file": file,
        "tls_ca_cert_file": file,
        "tls_replication": "yes",
        "tls_cluster": "yes",
    }
