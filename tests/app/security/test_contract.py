"""The OpenAPI document is true: a fuzzer that believes every word of it finds nothing in the running service.

All checks of schemathesis over all calls: no answer of 500 and above, no status, media type, header or body that is not
declared, nothing invalid accepted, nothing valid refused, no call without credentials, no wrong method, nothing to be had
after it was removed. ``make fuzz`` asks longer, with another seed each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app.paging import encode_token
from app.settings import Settings
from tests.app.access import Guarded
from tests.app.conftest import guarded_by_keys, running
from tests.app.factories import Service, chain, recipe, sha256, trace_file, trace_rows

TUS = {"Tus-Resumable": "1.0.0"}
METADATA = "kind Y2hlY2twb2ludA==,name YQ==,path eA=="  # checkpoint a, file x
HERE = Path(__file__).parent
EXAMPLES = int(os.environ.get("COGRAM_FUZZ_EXAMPLES", "0"))  # for each call; 0: a few, the same ones every time


@pytest.fixture
def guarded_alone(sqlite_settings: Settings) -> Iterator[Guarded]:
    """A service of the fuzzer's own, with room for all that it will try."""
    with running(guarded_by_keys(sqlite_settings, requests_per_second=1e6, auth_failures_per_minute=10**6)) as service:
        yield Guarded(service)


def _things(mine: Service) -> dict[str, str]:
    """One of everything, by the words of the configuration."""
    files = {"model.safetensors": chain(), "trace.parquet": trace_file(trace_rows(40)), "report.json": b"{}"}
    succeeded = mine.fusion()
    mine.succeed(succeeded, files)
    cancelled = mine.http.post("/v1/fusions", json=recipe()).json()["id"]
    assert mine.http.post(f"/v1/fusions/{cancelled}/cancel").json()["state"] == "cancelled"
    webhook = mine.http.post("/v1/webhooks", json={"url": "https://example.org/", "events": ["fusion.failed"]}).json()
    checkpoint = mine.checkpoint("fuzzed")["id"]
    upload = mine.http.post("/v1/uploads", headers=TUS | {"Upload-Length": "9", "Upload-Metadata": METADATA})
    mine.upload("checkpoints", "a", "again.safetensors", chain())
    return {
        "succeeded": succeeded,
        "cancelled": cancelled,
        "checkpoint": checkpoint,
        "dataset": mine.dataset("fuzzed")["id"],
        "upload": upload.headers["Location"].rpartition("/")[2],
        "webhook": webhook["id"],
        "delivery": mine.http.post(f"/v1/webhooks/{webhook['id']}/test").json()["id"],
        "digest": sha256(files["model.safetensors"]),
        "page_of_ids": encode_token(checkpoint),
        "page_of_numbers": encode_token(2),
    }


def _fuzz(address: str, words: Mapping[str, str], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    config = (HERE / "schemathesis.toml").read_text()
    for word, meaning in {**words, "hooks": str(HERE / "schemathesis_hooks.py")}.items():
        config = config.replace(f"@{word}@", meaning)
    (folder / "schemathesis.toml").write_text(config)
    command = ["-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", f"{address}/v1/openapi.json"]
    return subprocess.run(
        [sys.executable, *command, "--no-color", *options], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(7200 if EXAMPLES else 400)
def test_the_contract_is_true(guarded_alone: Guarded, tmp_path: Path) -> None:
    key = guarded_alone.key()
    with guarded_alone.calling(key) as mine:
        words = {**_things(mine), "key": key.text}
    few = ("--max-examples", "5", "--generation-deterministic", "--seed", "1")
    ended = _fuzz(guarded_alone.address, words, tmp_path, *(("--max-examples", str(EXAMPLES)) if EXAMPLES else few))
    print(ended.stdout)  # noqa: T201 - what was found, with the calls that show it
    assert ended.returncode == 0, ended.stderr
    calls = [
        call for path in guarded_alone.service.http.get("/v1/openapi.json").json()["paths"].values() for call in path
    ]
    assert f"Tested: {len(calls)}" in ended.stdout
