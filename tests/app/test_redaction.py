"""No secret comes into the log, wherever in a line it stands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from app.auth.keys import new_key
from app.redaction import redact

KEY = new_key()
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.c2lnbmF0dXJl"
SECRETS = {
    "a key": KEY.text,
    "a bearer": f"Authorization: Bearer {TOKEN}",
    "a header's list": str([(b"authorization", b"Basic c29tZTpzZWNyZXQ=")]),
    "a webhook's secret": "signed with whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "a database": "postgresql+psycopg://cogram:hunter2hunter2@db/cogram refused",
    "a broker": "redis://:hunter2hunter2@broker:6379/0",
    "a signed address": "https://s3/x?X-Amz-Signature=0123456789abcdef0123&X-Amz-Expires=60",
}
PARTS = ("hunter2hunter2", KEY.text[-20:], "c2lnbmF0dXJl", "c29tZTpzZWNyZXQ", "C2FVsBQIhrscChl", "0123456789abcdef0123")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_taken_out_of_text(name: str) -> None:
    text = SECRETS[name]
    for line in ({"event": text}, {"nested": {"list": [text]}}, {"error": ValueError(text)}):
        written = json.dumps(redact(None, "info", line))
        assert "[redacted]" in written
        assert not [part for part in PARTS if part in written]


def test_what_is_called_a_secret_is_one_and_the_rest_of_a_line_stays() -> None:
    line = {"webhook_secret": "x", "Authorization": "y", "api_key": "z", "page_token": "kept", "elapsed_ms": 1.5}
    assert redact(None, "info", line | {"ok": True, "none": None}) == {
        "webhook_secret": "[redacted]",
        "Authorization": "[redacted]",
        "api_key": "[redacted]",
        "page_token": "kept",
        "elapsed_ms": 1.5,
        "ok": True,
        "none": None,
    }
    told = {"account": KEY.account, "event": "the basic idea; token_max is 3"}
    assert redact(None, "info", told) == told


LIBRARIES = """
import logging, warnings
from app.logs import configure_logging
configure_logging()
for name in ("uvicorn.error", "celery.worker", "alembic.runtime.migration", "kombu"):
    logging.getLogger(name).warning("connected to redis://:%s@broker", "hunter2hunter2")
warnings.warn("careless", stacklevel=1)
try:
    raise ValueError("Bearer abcdefghijklmnop")
except ValueError:
    logging.getLogger("uvicorn.error").exception("broke")
"""


def test_lines_of_libraries_warnings_and_tracebacks_are_json_without_secrets() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == [
        "uvicorn.error",
        "celery.worker",
        "alembic.runtime.migration",
        "kombu",
        "py.warnings",
        "uvicorn.error",
    ]
    assert all(line["timestamp"] and line["level"] for line in lines)
    assert "ValueError: Bearer [redacted]" in lines[-1]["exception"]
    assert "hunter2" not in done.stderr
