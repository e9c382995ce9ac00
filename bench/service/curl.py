"""curl as the client of every transfer, as it costs the processor next to nothing beside what is measured."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

TUS = {"Tus-Resumable": "1.0.0"}


def check_curl() -> None:
    """Ends the program where there is no curl."""
    if shutil.which("curl") is None:
        sys.exit("curl is the client of this bench: apt-get install curl")


def put(url: str, file: Path) -> float:
    """Seconds of one upload by PUT."""
    return _curl("-H", "Expect:", "-T", str(file), url, wanted="201")


def tus(address: str, name: str, file: Path) -> float:
    """Seconds of one resumable upload, in one PATCH."""
    told = {"kind": "checkpoint", "name": name, "path": "model.safetensors"}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())
    begin = TUS | {"Upload-Length": str(file.stat().st_size), "Upload-Metadata": metadata}
    begun = httpx.post(f"{address}/v1/uploads", headers=begin).raise_for_status()
    headers = TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Expect": ""}
    options = [option for key, value in headers.items() for option in ("-H", f"{key}: {value}".rstrip())]
    where = httpx.URL(address).join(begun.headers["Location"])
    return _curl("-X", "PATCH", *options, "-T", str(file), str(where), wanted="204")


def get(url: str) -> float:
    """Seconds of one download to nowhere."""
    return _curl(url, wanted="200")


def _curl(*options: str, wanted: str) -> float:
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", *options]
    status, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert status == wanted, f"{status} for {' '.join(options)}"
    return float(seconds)
