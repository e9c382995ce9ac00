"""One attempt, in this process and on both databases: kept, lost, stopped, failed, closed."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event as Flag
from threading import Timer

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.store import jobs
from app.store.events import events_after
from app.store.ids import FusionId
from app.store.states import FusionState
from cogram_core.determinism import resolve_device, resolve_threads
from cogram_core.errors import FusionStopped, InvalidInput, OutputError, Problem
from cogram_core.observer import StageInfo
from cogram_core.pipeline import Fusion as Result
from cogram_core.trace import Decision
from tests.services import PostgreSQL
from tests.worker.conftest import rig_on
from tests.worker.rig import Rig
from worker.fusing import run
from worker.keeper import Holder
from worker.lease import Job, Ledger, Store

STAGE = StageInfo(0, 1, "cogram")


def _ledger(rig: Rig, name: str = "host:1", stopping: Callable[[], bool] = lambda: False) -> Ledger:
    return Ledger(Store(rig.database, rig.blobs), rig.settings, Holder(name, stopping))


def _submit(rig: Rig) -> FusionId:
    return rig.submit(rig.recipe())


def _write(job: Job, text: str = "fused") -> Result:
    assert job.inputs
    (job.output / "deep").mkdir(parents=True)
    (job.output / "model.safetensors").write_text(text)
    (job.output / "deep" / "report.json").write_text("{}")
    return Result(job.output, {"fused_beats_all_sources": True, "loss": float("inf")}, {})


def _until_stopped(job: Job, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not job.should_stop():
        assert time.monotonic() < end, "was never asked to stop"
        time.sleep(0.01)
    raise FusionStopped("asked to")


def _events(rig: Rig, fusion_id: str) -> list[str]:
    with rig.database.reading() as session:
        return [event.type for event in events_after(session, fusion_id, 0, 1000)]


def _decision(action: str, loss: float) -> Decision:
    return Decision(0, 0, "cogram", 0, "0", "neuron", 0, None, 1.0, None, None, None, None, action, loss, "", 0.0)  # type: ignore[arg-type]


def test_a_finished_attempt_leaves_artifacts_a_verdict_and_no_folder(each_rig: Rig) -> None:
    fusion_id = _submit(each_rig)
    with _ledger(each_rig).lease(fusion_id) as job:
        assert job is not None
        job.finish(_write(job))
    fusion = each_rig.row(fusion_id)
    assert fusion.state is FusionState.SUCCEEDED
    assert fusion.verdict == {"fused_beats_all_sources": True, "loss": None}
    assert {file.path: each_rig.blob(file.digest).read_text() for file in fusion.artifacts} == {
        "deep/report.json": "{}",
        "model.safetensors": "fused",
    }
    assert each_rig.work_folders() == []


def test_what_the_first_attempt_chose_of_the_machine_holds_for_every_later_one(each_rig: Rig) -> None:
    fusion_id = each_rig.submit(each_rig.recipe() | {"device": "auto", "threads": "auto"})
    device = str(resolve_device("auto"))
    with _ledger(each_rig).lease(fusion_id) as job:
        assert job is not None
        assert (job.recipe.device, job.recipe.threads) == (device, resolve_threads("auto"))
        with each_rig.database.transaction() as session:
            jobs.abandon(session, fusion_id, "host:1", "cut off", 3)
    assert each_rig.row(fusion_id).recipe == job.recipe.to_document()
    with _ledger(each_rig, "host:2").lease(fusion_id) as second:
        assert second is not None
        assert second.recipe == job.recipe
        second.finish(_write(second))


def test_a_worker_without_the_device_that_an_attempt_was_begun_on_refuses_it(rig: Rig) -> None:
    fusion_id = rig.submit(rig.recipe() | {"device": "cuda:99"})
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        assert job.recipe
    error = rig.row(fusion_id).error
    assert error is not None
    assert error["errors"][0]["code"] == "recipe.no_such_device"


def test_fusions_share_what_they_find_out_about_checkpoints_unless_the_operator_says_otherwise(rig: Rig) -> None:
    recipe = {**rig.recipe(), "stages": [{"method": "fisher"}]}
    without = replace(rig, settings=rig.settings.model_copy(update={"cache_bytes": 0}))
    models = []
    for place, kept in ((without, 0), (rig, 2), (rig, 2)):
        fusion_id = rig.submit(recipe)
        run(_ledger(place), fusion_id)
        models.append(rig.model(fusion_id))
        assert len(list(rig.settings.cache_dir.glob("*.safetensors"))) == kept
    assert len(set(models)) == 1


def test_inputs_are_laid_out_as_links_to_blobs(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        folders = {reference: path for reference, path in job.inputs.items() if reference.startswith("ckpt_")}
        files = {reference: path for reference, path in job.inputs.items() if reference.startswith("data_")}
        assert all(
            (folder / "model.safetensors").resolve().is_relative_to(rig.settings.blob_dir)
            for folder in folders.values()
        )
        assert all(file.name == "data.safetensors" and file.is_file() for file in files.values())
        assert (len(folders), len(files)) == (2, 2)
        job.finish(_write(job))


def test_a_job_that_is_held_or_done_gives_nothing_to_do(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        with _ledger(rig, "host:2").lease(fusion_id) as second:
            assert second is None
        job.finish(_write(job))
    with _ledger(rig, "host:2").lease(fusion_id) as late:
        assert late is None


def test_a_lease_is_renewed_for_as_long_as_the_attempt_runs(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        time.sleep(1.5 * rig.settings.lease_seconds)
        with rig.database.transaction() as session:
            assert jobs.requeue_expired(session, 3) == []
        assert not job.should_stop()
        job.finish(_write(job))
    assert rig.row(fusion_id).attempt == 1


def test_bad_input_fails_the_fusion_with_every_problem(each_rig: Rig) -> None:
    fusion_id = _submit(each_rig)
    with _ledger(each_rig).lease(fusion_id):
        raise InvalidInput([Problem("sources[0]", "shape", "One."), Problem("sources[1]", "shape", "Two.")])
    fusion = each_rig.row(fusion_id)
    assert fusion.state is FusionState.FAILED
    assert fusion.error == {
        "code": "input.invalid",
        "detail": "sources[0]: One. (and 1 more)",
        "errors": [
            {"location": "sources[0]", "code": "shape", "message": "One."},
            {"location": "sources[1]", "code": "shape", "message": "Two."},
        ],
    }


def test_an_unexpected_exception_fails_the_fusion_with_its_class_and_the_way_to_the_log(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        assert job.inputs
        raise ZeroDivisionError("in /srv/secret")
    fusion = rig.row(fusion_id)
    detail = f"ZeroDivisionError; see the worker's log for {fusion_id}."
    assert fusion.error == {"code": "fusion.internal", "detail": detail, "errors": []}
    assert rig.work_folders() == []


def test_an_error_of_the_core_keeps_its_code_and_message(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id):
        raise OutputError("no space left")
    assert rig.row(fusion_id).error == {"code": "output.failed", "detail": "no space left", "errors": []}


def test_an_error_names_no_folder_of_the_worker(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        raise OutputError(f"{job.output}/model.safetensors: can't be written")
    assert rig.row(fusion_id).error["detail"] == "output/model.safetensors: can't be written"


def test_a_disk_without_room_for_the_attempt_s_folder_is_told_as_such(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id):
        raise OSError(errno.ENOSPC, "No space left on device", "/where/it/lies")
    error = rig.row(fusion_id).error
    assert error["code"] == "storage.full"
    assert "No space left" in error["detail"]
    assert "/where" not in error["detail"]


def test_a_result_that_the_disk_does_not_take_fails_the_fusion_as_an_output(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        result = _write(job)
        rig.blob(sha256(b"fused").hexdigest()).parent.write_text("in the way of the result's folder")
        job.finish(result)
    fusion = rig.row(fusion_id)
    assert fusion.error is not None
    assert (fusion.state, fusion.error["code"]) == (FusionState.FAILED, "output.failed")
    assert str(rig.folder) not in fusion.error["detail"]


def test_inputs_that_are_gone_or_never_were_in_the_store_are_all_named(rig: Rig, tmp_path: Path) -> None:
    recipe = rig.recipe()
    recipe["sources"][1]["checkpoint"] = str(tmp_path)  # a path of the machine is not an input
    fusion_id = rig.submit(recipe)
    rig.blob(_digest(rig, recipe["data"]["holdout"])).unlink()
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        _write(job)
    error = rig.row(fusion_id).error
    assert error is not None
    assert {(problem["location"], problem["code"]) for problem in error["errors"]} == {
        ("sources[1].checkpoint", "input.missing"),
        ("data.holdout", "input.missing"),
    }


def test_a_database_failure_gives_the_job_back_instead_of_failing_it(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id):
        raise OperationalError("SELECT 1", {}, OSError("gone"))
    assert rig.row(fusion_id).state is FusionState.QUEUED


def test_a_statement_that_the_database_refuses_fails_the_fusion_instead_of_repeating_it(each_rig: Rig) -> None:
    fusion_id = _submit(each_rig)
    with _ledger(each_rig).lease(fusion_id), each_rig.database.reading() as session:
        session.execute(text("SELECT no_such_column FROM fusions"))
    fusion = each_rig.row(fusion_id)
    assert fusion.error is not None
    assert (fusion.state, fusion.error["code"]) == (FusionState.FAILED, "fusion.internal")


def test_an_error_in_the_keeper_s_thread_ends_neither_the_lease_nor_a_cancel(rig: Rig) -> None:
    fusion_id = _submit(rig)

    def stopping() -> bool:
        raise ZeroDivisionError

    with _ledger(rig, stopping=stopping).lease(fusion_id) as job:
        assert job is not None
        time.sleep(1.2 * rig.settings.lease_seconds)
        with rig.database.transaction() as session:
            assert jobs.requeue_expired(session, 3) == []
            jobs.request_cancel(session, fusion_id)
        _until_stopped(job)
    assert rig.row(fusion_id).state is FusionState.CANCELLED


def test_an_attempt_outlives_a_database_that_is_away_for_a_moment(
    postgresql_url: str, postgresql_server: PostgreSQL, tmp_path: Path
) -> None:
    with rig_on(postgresql_url, "memory://", tmp_path) as rig:
        rig.settings = rig.settings.model_copy(update={"lease_seconds": 20.0})
        fusion_id = _submit(rig)
        outage = ExitStack()
        back = Timer(1.5, outage.close)
        with _ledger(rig).lease(fusion_id) as job:
            assert job is not None
            result = _write(job)
            outage.enter_context(postgresql_server.out_of_reach(postgresql_url))
            back.start()
            job.stage_started(STAGE)
            time.sleep(0.5)  # the keeper has tried to write it
            job.finish(result)  # and the block ends while the database is still away
        back.join()
        fusion = rig.row(fusion_id)
        assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 1)
        assert "stage_started" in _events(rig, fusion_id)


def test_cancel_stops_a_running_attempt_and_leaves_no_folder(each_rig: Rig) -> None:
    fusion_id = _submit(each_rig)
    with _ledger(each_rig).lease(fusion_id) as job:
        assert job is not None
        assert job.inputs
        with each_rig.database.transaction() as session:
            jobs.request_cancel(session, fusion_id)
        _until_stopped(job)
    assert each_rig.row(fusion_id).state is FusionState.CANCELLED
    assert each_rig.work_folders() == []
    assert _events(each_rig, fusion_id) == ["queued", "started", "cancelling", "cancelled"]


def test_a_cancel_that_comes_when_all_is_computed_still_counts(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        job.finish(_write(job))
        with rig.database.transaction() as session:
            jobs.request_cancel(session, fusion_id)
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.artifacts) == (FusionState.CANCELLED, [])


def test_a_stopping_worker_gives_its_job_back_and_the_next_one_ends_it(rig: Rig) -> None:
    fusion_id = _submit(rig)
    stopping = Flag()
    with _ledger(rig, stopping=stopping.is_set).lease(fusion_id) as job:
        assert job is not None
        stopping.set()
        _until_stopped(job)
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.losses, fusion.worker) == (FusionState.QUEUED, 0, None)
    with _ledger(rig, "host:2").lease(fusion_id) as job:
        assert job is not None
        assert job.claim.attempt == 2
        job.finish(_write(job))
    assert rig.row(fusion_id).state is FusionState.SUCCEEDED


def test_an_attempt_that_lost_its_lease_stops_and_publishes_nothing(each_rig: Rig) -> None:
    fusion_id = _submit(each_rig)
    with _ledger(each_rig).lease(fusion_id) as old:
        assert old is not None
        with each_rig.database.transaction() as session:
            jobs.abandon(session, fusion_id, "host:1", "cut off", 3)
        with _ledger(each_rig, "host:2").lease(fusion_id) as new:
            assert new is not None
            new.finish(_write(new, "from the second"))
        _until_stopped(old)
    fusion = each_rig.row(fusion_id)
    assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 2)
    assert each_rig.blob(each_rig.model(fusion_id)).read_text() == "from the second"


def test_a_result_that_comes_after_the_lease_was_lost_is_not_published(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        result = _write(job)
        with rig.database.transaction() as session:
            jobs.abandon(session, fusion_id, "host:1", "cut off", 3)
        job.finish(result)
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.artifacts) == (FusionState.QUEUED, [])


def test_many_decisions_become_few_events_that_add_up(rig: Rig) -> None:
    fusion_id = _submit(rig)
    with _ledger(rig).lease(fusion_id) as job:
        assert job is not None
        job.stage_started(STAGE)
        began = time.monotonic()
        for number in range(3000):
            job.progress(STAGE, number + 1, 3000)
            job.decision(_decision("rolled_back" if number % 3 else "merged", 1 / (number + 1)))
            time.sleep(0.0002)
        took = time.monotonic() - began
        job.stage_finished(STAGE)
        job.finish(_write(job))
    with rig.database.reading() as session:
        events = events_after(session, fusion_id, 0, 1000)
    batches = [event.data for event in events if event.type == "decisions"]
    assert sum(batch["accepted"] for batch in batches) == 1000
    assert sum(batch["rolled_back"] for batch in batches) == 2000
    assert len(batches) <= 4 * took + 2
    assert [event.type for event in events][:3] == ["queued", "started", "stage_started"]
    assert [event.type for event in events][-2:] == ["stage_finished", "succeeded"]
    assert rig.row(fusion_id).progress == {
        "stage": 0,
        "stages": 1,
        "method": "cogram",
        "done": 3000,
        "total": 3000,
        "decisions": {"accepted": 1000, "trained": 0, "refined": 0, "rolled_back": 2000, "skipped": 0},
        "loss_after": pytest.approx(1 / 3000),
    }


def _digest(rig: Rig, dataset: str) -> str:
    from app.store.models import Dataset

    with rig.database.reading() as session:
        found = session.get(Dataset, dataset)
        assert found is not None
        return found.digest
