"""One attempt, in this process and on both databases: kept, lost, stopped, closed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Timer

import pytest

from app.store import jobs
from app.store.events import events_after
from app.store.states import FusionState
from cogram_core.determinism import resolve_device, resolve_threads
from cogram_core.observer import StageInfo
from cogram_core.trace import Decision
from tests.services import PostgreSQL
from tests.worker.attempts import ledger_of, run_until_stopped, submitted, written
from tests.worker.conftest import rig_on
from tests.worker.rig import Rig
from worker.fusing import run

STAGE = StageInfo(0, 1, "cogram")


def _events(rig: Rig, fusion_id: str) -> list[str]:
    with rig.database.reading() as session:
        return [event.type for event in events_after(session, fusion_id, 0, 1000)]


def _decision(action: str, loss: float) -> Decision:
    return Decision(0, 0, "cogram", 0, "0", "neuron", 0, None, 1.0, None, None, None, None, action, loss, "", 0.0)  # type: ignore[arg-type]


def test_a_finished_attempt_leaves_artifacts_a_verdict_and_no_folder(each_rig: Rig) -> None:
    fusion_id = submitted(each_rig)
    with ledger_of(each_rig).lease(fusion_id) as job:
        assert job is not None
        job.finish(written(job))
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
    with ledger_of(each_rig).lease(fusion_id) as job:
        assert job is not None
        assert (job.recipe.device, job.recipe.threads) == (device, resolve_threads("auto"))
        with each_rig.database.transaction() as session:
            jobs.abandon(session, fusion_id, "host:1", "cut off", 3)
    assert each_rig.row(fusion_id).recipe == job.recipe.to_document()
    with ledger_of(each_rig, "host:2").lease(fusion_id) as second:
        assert second is not None
        assert second.recipe == job.recipe
        second.finish(written(second))


def test_a_worker_without_the_device_that_an_attempt_was_begun_on_refuses_it(rig: Rig) -> None:
    fusion_id = rig.submit(rig.recipe() | {"device": "cuda:99"})
    with ledger_of(rig).lease(fusion_id) as job:
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
        run(ledger_of(place), fusion_id)
        models.append(rig.model(fusion_id))
        assert len(list(rig.settings.cache_dir.glob("*.safetensors"))) == kept
    assert len(set(models)) == 1


def test_inputs_are_laid_out_as_links_to_blobs(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        folders = {reference: path for reference, path in job.inputs.items() if reference.startswith("ckpt_")}
        files = {reference: path for reference, path in job.inputs.items() if reference.startswith("data_")}
        assert all(
            (folder / "model.safetensors").resolve().is_relative_to(rig.settings.blob_dir)
            for folder in folders.values()
        )
        assert all(file.name == "data.safetensors" and file.is_file() for file in files.values())
        assert (len(folders), len(files)) == (2, 2)
        job.finish(written(job))


def test_a_job_that_is_held_or_done_gives_nothing_to_do(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        with ledger_of(rig, "host:2").lease(fusion_id) as second:
            assert second is None
        job.finish(written(job))
    with ledger_of(rig, "host:2").lease(fusion_id) as late:
        assert late is None


def test_a_lease_is_renewed_for_as_long_as_the_attempt_runs(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        time.sleep(1.5 * rig.settings.lease_seconds)
        with rig.database.transaction() as session:
            assert jobs.requeue_expired(session, 3) == []
        assert not job.should_stop()
        job.finish(written(job))
    assert rig.row(fusion_id).attempt == 1


def test_an_error_in_the_keeper_s_thread_ends_neither_the_lease_nor_a_cancel(rig: Rig) -> None:
    fusion_id = submitted(rig)

    def stopping() -> bool:
        raise ZeroDivisionError

    with ledger_of(rig, stopping=stopping).lease(fusion_id) as job:
        assert job is not None
        time.sleep(1.2 * rig.settings.lease_seconds)
        with rig.database.transaction() as session:
            assert jobs.requeue_expired(session, 3) == []
            jobs.request_cancel(session, fusion_id)
        run_until_stopped(job)
    assert rig.row(fusion_id).state is FusionState.CANCELLED


def test_an_attempt_outlives_a_database_that_is_away_for_a_moment(
    postgresql_url: str, postgresql_server: PostgreSQL, tmp_path: Path
) -> None:
    with rig_on(postgresql_url, "memory://", tmp_path) as rig:
        rig.settings = rig.settings.model_copy(update={"lease_seconds": 20.0})
        fusion_id = submitted(rig)
        outage = ExitStack()
        back = Timer(1.5, outage.close)
        with ledger_of(rig).lease(fusion_id) as job:
            assert job is not None
            result = written(job)
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
    fusion_id = submitted(each_rig)
    with ledger_of(each_rig).lease(fusion_id) as job:
        assert job is not None
        assert job.inputs
        with each_rig.database.transaction() as session:
            jobs.request_cancel(session, fusion_id)
        run_until_stopped(job)
    assert each_rig.row(fusion_id).state is FusionState.CANCELLED
    assert each_rig.work_folders() == []
    assert _events(each_rig, fusion_id) == ["queued", "started", "cancelling", "cancelled"]


def test_a_cancel_that_comes_when_all_is_computed_still_counts(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        job.finish(written(job))
        with rig.database.transaction() as session:
            jobs.request_cancel(session, fusion_id)
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.artifacts) == (FusionState.CANCELLED, [])


def test_a_stopping_worker_gives_its_job_back_and_the_next_one_ends_it(rig: Rig) -> None:
    fusion_id = submitted(rig)
    stopping = Flag()
    with ledger_of(rig, stopping=stopping.is_set).lease(fusion_id) as job:
        assert job is not None
        stopping.set()
        run_until_stopped(job)
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.losses, fusion.worker) == (FusionState.QUEUED, 0, None)
    with ledger_of(rig, "host:2").lease(fusion_id) as job:
        assert job is not None
        assert job.claim.attempt == 2
        job.finish(written(job))
    assert rig.row(fusion_id).state is FusionState.SUCCEEDED


def test_an_attempt_that_lost_its_lease_stops_and_publishes_nothing(each_rig: Rig) -> None:
    fusion_id = submitted(each_rig)
    with ledger_of(each_rig).lease(fusion_id) as old:
        assert old is not None
        with each_rig.database.transaction() as session:
            jobs.abandon(session, fusion_id, "host:1", "cut off", 3)
        with ledger_of(each_rig, "host:2").lease(fusion_id) as new:
            assert new is not None
            new.finish(written(new, "from the second"))
        run_until_stopped(old)
    fusion = each_rig.row(fusion_id)
    assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 2)
    assert each_rig.blob(each_rig.model(fusion_id)).read_text() == "from the second"


def test_a_result_that_comes_after_the_lease_was_lost_is_not_published(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        result = written(job)
        with rig.database.transaction() as session:
            jobs.abandon(session, fusion_id, "host:1", "cut off", 3)
        job.finish(result)
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.artifacts) == (FusionState.QUEUED, [])


def test_many_decisions_become_few_events_that_add_up(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        job.stage_started(STAGE)
        began = time.monotonic()
        for number in range(3000):
            job.progress(STAGE, number + 1, 3000)
            job.decision(_decision("rolled_back" if number % 3 else "merged", 1 / (number + 1)))
            time.sleep(0.0002)
        took = time.monotonic() - began
        job.stage_finished(STAGE)
        job.finish(written(job))
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
