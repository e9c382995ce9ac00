"""A collector that never waits, beside callers who upload, make checkpoints and remove them."""

from __future__ import annotations

import threading
from datetime import timedelta

import httpx

from app.store.blobs import Collector
from tests.app.factories import Service, chain, sha256

CONTENTS = [chain(value=value) for value in (0.25, 0.5)]
ROUNDS = 8


def test_uploads_beside_collectors_are_whole_or_told_to_come_again(service: Service) -> None:
    over = threading.Event()
    faults: list[str] = []
    seen: set[tuple[str, int]] = set()
    taken: list[int] = []  # a sum kept by two threads would lose what one adds while the other collects

    def expect(what: str, answer: httpx.Response, *statuses: int) -> bool:
        seen.add((what, answer.status_code))
        if answer.status_code not in statuses:
            faults.append(f"{what}: {answer.status_code} {answer.text}")
        return answer.status_code == statuses[0]

    def bring(number: int) -> None:
        content = CONTENTS[number % len(CONTENTS)]
        url = f"/v1/checkpoints/net{number}/files/model.safetensors"
        with httpx.Client(base_url=service.http.base_url, timeout=20) as http:
            for _ in range(ROUNDS):
                if not expect("put", http.put(url, content=content), 201, 503):
                    continue
                made = http.post("/v1/checkpoints", json={"name": f"net{number}"})
                if not expect("make", made, 201):
                    continue
                one = f"/v1/checkpoints/{made.json()['id']}"
                expect("read", http.get(f"{one}/tensors"), 200)
                if service.blob(sha256(content)).read_bytes() != content:
                    faults.append("the bytes are gone")
                expect("remove", http.delete(one), 204)

    def collect() -> None:
        collector = Collector(service.context.database, service.context.blobs.storage, timedelta())
        while not over.is_set():
            collector.adopt_orphans()
            taken.append(collector.collect())

    collectors = [threading.Thread(target=collect) for _ in range(2)]
    callers = [threading.Thread(target=bring, args=[number]) for number in range(4)]
    for thread in collectors + callers:
        thread.start()
    for thread in callers:
        thread.join(100)
    over.set()
    for thread in collectors:
        thread.join(20)
    assert faults == []
    assert {("put", 201), ("make", 201), ("read", 200), ("remove", 204)} <= seen
    last = Collector(service.context.database, service.context.blobs.storage, timedelta())
    last.adopt_orphans()
    taken.append(last.collect())
    assert any(taken)
    assert service.blobs() == []
