"""What the client raises, and how an answer becomes that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx


class ClientError(Exception):
    """Root of what this client raises."""


class ServiceProblem(ClientError):
    """The service refused; everything that it said of why."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(document.get("code", "unknown"))
        self.detail = str(document.get("detail", ""))
        self.request_id = str(document.get("request_id", ""))
        self.errors: list[dict[str, str]] = list(document.get("errors", []))
        lines = [f"{status} {self.code}: {self.detail}"]
        lines += [f"  {error['location']}: {error['message']}" for error in self.errors]
        super().__init__("\n".join(lines))


class Unreachable(ClientError):
    """No answer from the service."""


class DamagedDownload(ClientError):
    """A file whose bytes are not those that were announced; nothing was kept."""


def raise_for_problem(answer: httpx.Response) -> None:
    """Raises ServiceProblem unless the answer is what was asked for."""
    if answer.is_success:
        return
    answer.read()
    try:
        document = answer.json()
    except ValueError:
        document = {"detail": answer.text[:500]}
    raise ServiceProblem(answer.status_code, document)
