"""An identity provider on a port of this machine: real keys, real tokens, real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AUDIENCE = "cogram"
_Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_KINDS = {
    "RS256": (rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm),
    "ES256": (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey, jwt.algorithms.OKPAlgorithm),
}


def new_key(algorithm: str) -> _Private:
    """A private key for one algorithm."""
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: _Private) -> bytes:
    """The public half, as text that anybody may have."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Provider:
    """What it has published, how often it was asked, and tokens of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, tuple[str, _Private]] = {}
        self.asked: list[str] = []
        self.broken = False
        self.says_it_is = url
        self.extra: list[dict[str, Any]] = []
        self.reached = threading.Event()
        self.gate = threading.Event()  # while it is not set, nobody is answered
        self.gate.set()

    def add(self, algorithm: str) -> str:
        """Publishes a new key; its id."""
        key_id = f"key-{len(self.keys)}-{algorithm}"
        self.keys[key_id] = algorithm, new_key(algorithm)
        return key_id

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a token says; None takes a claim away."""
        now = int(time.time())
        usual = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "someone",
            "exp": now + 600,
            "tenant": "one",
            "scope": "openid cogram:read cogram:upload",
        }
        return {name: value for name, value in (usual | changes).items() if value is not None}

    def token(self, key_id: str, **changes: Any) -> str:
        """A token under one of the keys."""
        algorithm, key = self.keys[key_id]
        return jwt.encode(self.claims(**changes), key, algorithm=algorithm, headers={"kid": key_id})

    def document(self, path: str) -> dict[str, Any] | None:
        """What is at a path."""
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.says_it_is, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            return {"keys": [*self.extra, *(_published(key_id, *key) for key_id, key in self.keys.items())]}
        return None


def _published(key_id: str, algorithm: str, key: _Private) -> dict[str, Any]:
    document: dict[str, Any] = _KINDS[algorithm][1].to_jwk(key.public_key(), as_dict=True)
    return {**document, "kid": key_id, "use": "sig"}


@contextmanager
def provider() -> Iterator[Provider]:
    """A running identity provider with one key of each kind."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            running.asked.append(self.path)
            running.reached.set()
            running.gate.wait(4)
            found = None if running.broken else running.document(self.path)
            body = json.dumps(found).encode()
            self.send_response(200 if found is not None else 500 if running.broken else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Provider(f"http://127.0.0.1:{server.server_port}")
    for algorithm in _KINDS:
        running.add(algorithm)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
