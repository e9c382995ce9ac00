"""Quotas: what an account stores, keeps and runs at once, counted so that no race gets past them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.auth import Scope
from app.settings import Settings
from app.store.database import Database
from tests.app.access import Guarded
from tests.app.conftest import guarded_by_keys, running
from tests.app.factories import Service, chain, examples, sha256

AT_ONCE = 20
URL = "/v1/checkpoints/net/files/{}"
TUS = {"Tus-Resumable": "1.0.0", "Upload-Metadata": "kind Y2hlY2twb2ludA==,name bmV0,path YQ=="}


def _at_once(asked: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(asked, range(AT_ONCE)))


def _counts(answers: list[httpx.Response]) -> Counter[tuple[int, str]]:
    return Counter((answer.status_code, answer.json().get("code", "") if answer.content else "") for answer in answers)


def _open_files() -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(descriptor.readlink()))
    return found


def test_uploads_at_once_get_exactly_the_bytes_that_there_are(guarded: Guarded) -> None:
    with guarded.client(guarded.key(bytes=7_500)) as http:
        answers = _at_once(lambda number: http.put(URL.format(number), content=b"x" * 1000))
        assert _counts(answers) == {(201, ""): 7, (403, "quota.bytes"): 13}
        assert http.put(URL.format("small"), content=b"x" * 500).status_code == 201
        refused = http.put(URL.format("more"), content=b"x")
    assert "would store 7501 bytes, and may store 7500" in refused.json()["detail"]
    assert "Delete" in refused.json()["detail"]


def test_resumable_uploads_count_as_long_as_they_said_from_their_beginning(guarded: Guarded) -> None:
    with guarded.client(guarded.key(bytes=7_500)) as http:
        answers = _at_once(lambda _: http.post("/v1/uploads", headers={**TUS, "Upload-Length": "1000"}))
        assert _counts(answers) == {(201, ""): 7, (403, "quota.bytes"): 13}
        place = next(answer.headers["Location"] for answer in answers if answer.status_code == 201)
        patch = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        assert http.patch(place, headers=patch, content=b"x" * 1000).status_code == 204  # counted once, not twice
        assert http.put(URL.format("b"), content=b"x" * 500).status_code == 201
        assert http.put(URL.format("c"), content=b"x").status_code == 403
        other = next(a.headers["Location"] for a in answers if a.status_code == 201 and a.headers["Location"] != place)
        assert http.delete(other, headers=TUS).status_code == 204
        assert http.put(URL.format("c"), content=b"x" * 1000).status_code == 201


def test_a_resumable_upload_that_is_refused_leaves_no_file_open(guarded: Guarded) -> None:
    with guarded.client(guarded.key(bytes=10)) as http:
        answers = _at_once(lambda _: http.post("/v1/uploads", headers={**TUS, "Upload-Length": "1000"}))
    assert _counts(answers) == {(403, "quota.bytes"): AT_ONCE}
    folder = str(guarded.service.context.settings.uploads_dir)
    assert [path for path in _open_files() if path.startswith(folder)] == []


@pytest.mark.parametrize(
    ("allowance", "code"), [({"concurrent": 3}, (429, "quota.concurrent")), ({"fusions": 3}, (403, "quota.fusions"))]
)
def test_fusions_at_once_get_exactly_the_places_that_there_are(
    guarded: Guarded, allowance: dict[str, int], code: tuple[int, str]
) -> None:
    with guarded.calling(guarded.key("one")) as plenty:
        recipe = plenty.recipe()
    with guarded.calling(guarded.key("one", **allowance)) as one:
        answers = _at_once(lambda _: one.http.post("/v1/fusions", json=recipe))
        assert _counts(answers) == {(202, ""): 3, code: AT_ONCE - 3}
        if code[0] == 429:
            assert {int(answer.headers["Retry-After"]) for answer in answers if answer.status_code == 429} == {10}
        fusion_id = next(answer.json()["id"] for answer in answers if answer.status_code == 202)
        assert one.http.post(f"/v1/fusions/{fusion_id}/cancel").json()["state"] == "cancelled"
        if "fusions" in allowance:
            assert one.http.post("/v1/fusions", json=recipe).status_code == code[0]
            assert one.http.delete(f"/v1/fusions/{fusion_id}").status_code == 204
        assert one.http.post("/v1/fusions", json=recipe).status_code == 202
        assert one.http.post("/v1/fusions", json=recipe).status_code == code[0]


def test_everything_that_is_stored_counts_and_what_is_removed_no_longer_does(guarded: Guarded) -> None:
    net, data = len(chain()), len(examples())
    key = guarded.key("one", bytes=2 * net + 2 * data + 1000)
    with guarded.calling(key) as one:
        recipe = one.recipe()
        fusion_id = one.http.post("/v1/fusions", json=recipe).json()["id"]
        one.succeed(fusion_id, {"model.safetensors": b"x" * 600})
        assert one.http.put(URL.format("a"), content=b"x" * 401).status_code == 403
        assert one.http.put(URL.format("a"), content=b"x" * 400).status_code == 201
        assert one.http.put(URL.format("a"), content=b"y" * 400).status_code == 201  # in its place, not beside it
        refused = one.http.post("/v1/fusions", json=recipe)
        assert (refused.status_code, refused.json()["code"]) == (403, "quota.bytes")
        assert one.http.delete(f"/v1/fusions/{fusion_id}").status_code == 204
        assert one.http.put(URL.format("b"), content=b"x" * 600).status_code == 201
        for dataset in one.http.get("/v1/datasets").json()["items"]:
            assert one.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
        for checkpoint in one.http.get("/v1/checkpoints").json()["items"]:
            assert one.http.delete(f"/v1/checkpoints/{checkpoint['id']}").status_code == 204
        assert one.http.put(URL.format("c"), content=b"x" * (2 * net + 2 * data)).status_code == 201
        assert one.http.put(URL.format("d"), content=b"x").status_code == 403


def test_what_is_too_much_is_refused_before_and_while_it_comes(guarded: Guarded) -> None:
    with guarded.client(guarded.key(bytes=100_000)) as http:
        announced = http.put(URL.format("a"), content=b"x" * 3_000_000)
        came = []

        def unannounced() -> Any:
            for _ in range(300):
                came.append(1)
                yield b"x" * 10_000

        try:
            streamed = http.put(URL.format("a"), content=unannounced()).json()["code"]
        except httpx.WriteError:  # the answer came while there was still much to send
            streamed = "quota.bytes"
        assert (announced.json()["code"], streamed) == ("quota.bytes", "quota.bytes")
        assert http.get("/v1/checkpoints").status_code == 200
    assert guarded.service.blobs() == []
    assert guarded.service.incoming() == []


def test_who_makes_a_checkpoint_of_a_colleagues_file_takes_its_bytes_over(guarded: Guarded) -> None:
    with guarded.calling(guarded.key("one")) as colleague, guarded.calling(guarded.key("one", bytes=10)) as small:
        for kind, content in (("checkpoints", chain()), ("datasets", examples())):
            colleague.upload(kind, "x", "x.safetensors", content)
            assert small.http.post(f"/v1/{kind}", json={"name": "x"}).json()["code"] == "quota.bytes"
            assert colleague.http.post(f"/v1/{kind}", json={"name": "x"}).status_code == 201


def test_bytes_that_are_there_already_count_where_they_are_used_again(guarded: Guarded) -> None:
    key = guarded.key("one", bytes=len(chain()) + len(examples()))
    with guarded.calling(key) as one:
        for kind, content in (("checkpoints", chain()), ("datasets", examples())):
            one.upload(kind, "x", "x.safetensors", content)
            assert one.http.post(f"/v1/{kind}", json={"name": "x"}).status_code == 201
            again = {"name": "y", "blobs": {"x.safetensors": f"sha256:{sha256(content)}"}}
            answer = one.http.post(f"/v1/{kind}", json=again)
            if kind == "datasets":  # the checkpoint still left room for one more dataset's bytes, but not for two
                assert (answer.status_code, answer.json()["code"]) == (403, "quota.bytes")
        assert len(one.http.get("/v1/datasets").json()["items"]) == 1


def test_accounts_have_what_the_settings_say_unless_their_key_says_otherwise(sqlite_settings: Settings) -> None:
    with running(guarded_by_keys(sqlite_settings, quota_bytes=10, quota_concurrent=0)) as started:
        guarded = Guarded(started)
        with guarded.client(guarded.key()) as usual, guarded.client(guarded.key(bytes=20)) as larger:
            assert usual.put(URL.format("a"), content=b"x" * 11).status_code == 403
            assert larger.put(URL.format("a"), content=b"x" * 11).status_code == 201
            assert usual.put(URL.format("b"), content=b"x" * 10).status_code == 201
    with running(
        sqlite_settings.model_copy(update={"quota_bytes": 10, "quota_fusions": 0, "quota_concurrent": 0})
    ) as local:
        assert local.fusion()  # the local caller's own machine is limit enough


def test_below_the_least_free_space_nothing_more_is_taken_in(sqlite_settings: Settings) -> None:
    with running(sqlite_settings) as before:
        recipe = before.recipe()
    with running(sqlite_settings.model_copy(update={"min_free_bytes": 2**62})) as started:
        for answer in (
            started.http.put(URL.format("a"), content=b"x"),
            started.http.post("/v1/uploads", headers={**TUS, "Upload-Length": "1"}),
            started.http.post("/v1/fusions", json=recipe),
        ):
            assert (answer.status_code, answer.json()["code"]) == (507, "storage.low")
            assert answer.headers["Retry-After"] == "60"
            assert "COGRAM_MIN_FREE_BYTES" in answer.json()["detail"]
        assert started.http.get("/v1/checkpoints").status_code == 200


def test_counting_reads_no_table_from_end_to_end(database: Database) -> None:
    """Every part of the sum goes by an index; the planner is told not to read small tables whole, as it else would."""
    from app.quotas import repository

    statements: list[str] = []

    class Recorded:
        def scalars(self, statement: Any) -> Any:
            compiled = statement.compile(database.engine, compile_kwargs={"literal_binds": True})
            statements.append(str(compiled))
            raise _Enough

    for count in (repository.stored_bytes, repository.kept_fusions, repository.unfinished_fusions):
        with pytest.raises(_Enough):
            count(Recorded(), "key_x")  # type: ignore[arg-type]
    is_sqlite = database.engine.dialect.name == "sqlite"
    with database.reading() as session:
        if not is_sqlite:
            session.execute(text("SET LOCAL enable_seqscan = off"))
        for statement in statements:
            explained = session.execute(text(("EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN ") + statement)).all()
            plan = "\n".join(" ".join(map(str, row)) for row in explained)
            assert "SCAN " not in plan.replace("SCAN CONSTANT", "") if is_sqlite else "Seq Scan" not in plan, plan


class _Enough(Exception):
    pass


def test_rates_are_told_and_kept(guarded: Guarded) -> None:
    with guarded.client(guarded.key("one", Scope.READ, requests_per_second=0.5)) as http:
        good, *_, refused = [http.get("/v1/fusions") for _ in range(3)]
        assert (good.status_code, good.headers["RateLimit-Policy"]) == (200, '"account";q=1;w=2')
        assert good.headers["RateLimit"].startswith('"account";r=0;t=')
        assert (refused.status_code, refused.json()["code"]) == (429, "rate.exceeded")
        assert refused.headers["Retry-After"] in {"1", "2"}
        assert refused.headers["RateLimit"] == f'"account";r=0;t={refused.headers["Retry-After"]}'
        with guarded.client(guarded.key("one", Scope.READ)) as other:
            assert other.get("/v1/fusions").status_code == 200


def test_the_local_caller_has_no_rate(sqlite_service: Service) -> None:
    assert "RateLimit" not in sqlite_service.http.get("/v1/fusions").headers
