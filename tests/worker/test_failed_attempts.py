"""Attempts that fail, in this process and on both databases: what the fusion says of it, and what it keeps to itself."""

from __future__ import annotations

import errno
from hashlib import sha256
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.store.models import Dataset
from app.store.states import FusionState
from cogram_core.errors import InvalidInput, OutputError, Problem
from tests.worker.attempts import ledger_of, submitted, written
from tests.worker.rig import Rig


def test_bad_input_fails_the_fusion_with_every_problem(each_rig: Rig) -> None:
    fusion_id = submitted(each_rig)
    with ledger_of(each_rig).lease(fusion_id):
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
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        assert job.inputs
        raise ZeroDivisionError("in /srv/secret")
    fusion = rig.row(fusion_id)
    detail = f"ZeroDivisionError; see the worker's log for {fusion_id}."
    assert fusion.error == {"code": "fusion.internal", "detail": detail, "errors": []}
    assert rig.work_folders() == []


def test_an_error_of_the_core_keeps_its_code_and_message(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id):
        raise OutputError("no space left")
    assert rig.row(fusion_id).error == {"code": "output.failed", "detail": "no space left", "errors": []}


def test_an_error_names_no_folder_of_the_worker(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        raise OutputError(f"{job.output}/model.safetensors: can't be written")
    assert rig.row(fusion_id).error["detail"] == "output/model.safetensors: can't be written"


def test_a_disk_without_room_for_the_attempt_s_folder_is_told_as_such(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id):
        raise OSError(errno.ENOSPC, "No space left on device", "/where/it/lies")
    error = rig.row(fusion_id).error
    assert error["code"] == "storage.full"
    assert "No space left" in error["detail"]
    assert "/where" not in error["detail"]


def test_a_result_that_the_disk_does_not_take_fails_the_fusion_as_an_output(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        result = written(job)
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
    with ledger_of(rig).lease(fusion_id) as job:
        assert job is not None
        written(job)
    error = rig.row(fusion_id).error
    assert error is not None
    assert {(problem["location"], problem["code"]) for problem in error["errors"]} == {
        ("sources[1].checkpoint", "input.missing"),
        ("data.holdout", "input.missing"),
    }


def test_a_database_failure_gives_the_job_back_instead_of_failing_it(rig: Rig) -> None:
    fusion_id = submitted(rig)
    with ledger_of(rig).lease(fusion_id):
        raise OperationalError("SELECT 1", {}, OSError("gone"))
    assert rig.row(fusion_id).state is FusionState.QUEUED


def test_a_statement_that_the_database_refuses_fails_the_fusion_instead_of_repeating_it(each_rig: Rig) -> None:
    fusion_id = submitted(each_rig)
    with ledger_of(each_rig).lease(fusion_id), each_rig.database.reading() as session:
        session.execute(text("SELECT no_such_column FROM fusions"))
    fusion = each_rig.row(fusion_id)
    assert fusion.error is not None
    assert (fusion.state, fusion.error["code"]) == (FusionState.FAILED, "fusion.internal")


def _digest(rig: Rig, dataset: str) -> str:
    with rig.database.reading() as session:
        found = session.get(Dataset, dataset)
        assert found is not None
        return found.digest
