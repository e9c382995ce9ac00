"""What callers do: bring a file, ask for a fusion, follow it, cancel it, fetch its result. One deed at a time a thread."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from tests.chaos.caller import Caller, problem
from tests.chaos.inputs import Files
from tests.chaos.plan import Job
from tests.chaos.tally import FULL_DISK_CODES, Accepted, Tally

_FILE = "model.safetensors"
_PAGE = 200


class Deeds:
    """Over one connection."""

    def __init__(self, caller: Caller, files: Files, tally: Tally) -> None:
        self._caller = caller
        self._files = files
        self._tally = tally

    def bring(self, name: str, cuts: tuple[float, ...], resumably: bool) -> None:
        """Uploads a file and makes a checkpoint or dataset of it."""
        kind, file = self._files.kinds[name], self._files.path(name)
        put = self._caller.put_resumably if resumably else self._caller.put
        digest = put(kind, name, file, cuts)
        answer = self._caller.ask(
            "POST",
            f"/{kind}s",
            json={"name": name, "files": [_FILE]},
            headers={"Idempotency-Key": f"bring-{name}"},  # else a lost answer, asked for again, finds the file used
        )
        if answer.status_code != 201:
            self._tally.find(f"{name} could not be made of its upload: {problem(answer)}")
            return
        self._tally.acknowledge(name, digest, file.stat().st_size)

    def run(self, job: Job) -> None:
        """One job from its inputs to its result."""
        if job.own_source is not None:
            self.bring(job.own_source, job.cut_at, job.resumably)
        if job.outcome == "refused":
            self._be_refused(job)
            return
        accepted = self._submit(job, f"soak-{job.number}")
        while accepted is not None:
            self._see_through(job, accepted)
            accepted = self._again(job, accepted)

    def _see_through(self, job: Job, accepted: Accepted) -> None:
        if job.cancel_after is not None:
            time.sleep(job.cancel_after)
            answer = self._caller.ask("POST", f"/fusions/{accepted.fusion_id}/cancel")
            self._tally.check(answer.status_code in {202, 409}, f"{accepted.fusion_id}: cancel: {problem(answer)}")
        if job.follows:
            events = self._caller.follow(accepted.fusion_id, job.leaves_stream_after)
            accepted.events = [(event.id, event.type) for event in events]
            self._tally.count("events followed", len(events))
        fusion = self._caller.wait(accepted.fusion_id)
        accepted.state, accepted.error = fusion["state"], fusion["error"]
        if accepted.state == "succeeded":
            self._fetch(job, accepted)

    def _submit(self, job: Job, key: str) -> Accepted | None:
        headers = {"Idempotency-Key": key} if job.has_key else {}
        first = self._post(job, headers)
        if first is None:
            return None
        for _ in range(job.times_posted - 1):
            again = self._post(job, headers)
            self._tally.count("jobs posted twice under one key")
            self._tally.check(
                again is first, f"job {job.number}: one key, and {first.fusion_id} and {again and again.fusion_id}"
            )
            other = job.recipe | {"seed": job.number + 10**9}
            answer = self._caller.ask("POST", "/fusions", json=other, headers=headers)
            self._tally.check(
                answer.status_code == 422, f"job {job.number}: its key with another body: {problem(answer)}"
            )
        return first

    def _post(self, job: Job, headers: dict[str, str]) -> Accepted | None:
        while True:
            answer = self._caller.try_once("POST", "/fusions", json=job.recipe, headers=headers)
            if answer is None and headers:
                answer = self._caller.ask("POST", "/fusions", json=job.recipe, headers=headers)
            if answer is not None and answer.status_code != 202:
                self._tally.find(f"job {job.number} ({job.kind}): refused: {problem(answer)}")
                return None
            fusion_id = answer.json()["id"] if answer is not None else self._lost_answer(job)
            if fusion_id is not None:
                return self._tally.accept(fusion_id, job.number)

    def _lost_answer(self, job: Job) -> str | None:
        """Without a key, a caller who got no answer has to look whether the fusion was made nevertheless."""
        params: dict[str, Any] = {"limit": _PAGE}
        while True:
            page = self._caller.ask("GET", "/fusions", params=params).json()
            for fusion in page["items"]:
                if fusion["recipe"]["seed"] == job.number:
                    return str(fusion["id"])
            if page["next_page_token"] is None:
                return None
            params["page_token"] = page["next_page_token"]

    def _be_refused(self, job: Job) -> None:
        answer = self._caller.ask(
            "POST", "/fusions", json=job.recipe, headers={"Idempotency-Key": f"soak-{job.number}"}
        )
        places = [entry["location"] for entry in answer.json().get("errors", [])]
        told = answer.status_code == 422 and any(job.refused_at in place for place in places)
        self._tally.check(told, f"job {job.number} ({job.kind}): {problem(answer)}")
        self._tally.count("jobs refused as expected", told)

    def _again(self, job: Job, accepted: Accepted) -> Accepted | None:
        """A fusion that the full disk ended is asked for again."""
        if accepted.state != "failed":
            return None
        if job.outcome == "fails" and (accepted.error or {}).get("code") not in FULL_DISK_CODES:
            return None
        # The checks see whether the disk was full at that time.
        self._tally.note(f"{accepted.fusion_id} (job {job.number}) failed: {json.dumps(accepted.error)[:600]}")
        headers = {"Idempotency-Key": f"retry-{accepted.fusion_id}"}
        answer = self._caller.ask("POST", f"/fusions/{accepted.fusion_id}/retry", headers=headers)
        if answer.status_code != 202:
            self._tally.find(f"{accepted.fusion_id}: retry: {problem(answer)}")
            return None
        return self._tally.accept(answer.json()["id"], job.number)

    def _fetch(self, job: Job, accepted: Accepted) -> None:
        answer = self._caller.ask("GET", f"/fusions/{accepted.fusion_id}/artifacts")
        answer.raise_for_status()
        for item in answer.json()["items"]:
            content = self._caller.download(item["link"], item["size"], job.pieces)
            same = hashlib.sha256(content).hexdigest() == item["sha256"]
            self._tally.check(same, f"{accepted.fusion_id}: {item['path']} came with another digest")
