"""Datasets: one uploaded file with inputs and targets."""

from __future__ import annotations

from tests.app.factories import Service, chain, examples, floats, safetensors_file, sha256


def test_a_dataset_is_made_of_an_uploaded_file(service: Service) -> None:
    content = examples(count=6, classes=2)
    service.upload("datasets", "eval", "data.safetensors", content)
    answer = service.http.post("/v1/datasets", json={"name": "eval"})
    assert answer.status_code == 201
    made = answer.json()
    assert made["id"].startswith("data_")
    assert made["sha256"] == sha256(content)
    assert (made["examples"], made["input_shape"], made["target_min"], made["target_max"]) == (6, [3], 0, 1)
    assert service.http.get(answer.headers["Location"]).json() == made
    assert service.http.get("/v1/datasets").json()["items"] == [made]


def test_a_file_that_is_no_dataset_is_refused_by_the_name_that_the_caller_gave_it(service: Service) -> None:
    float_targets = safetensors_file({"inputs": floats((4, 3)), "targets": floats((4,))})
    for content, code in [
        (chain(), "dataset.invalid"),
        (float_targets, "dataset.invalid"),
        (b"x", "checkpoint.invalid"),
    ]:
        service.upload("datasets", "eval", "my/data.safetensors", content)
        answer = service.http.post("/v1/datasets", json={"name": "eval"})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert "my/data.safetensors" in answer.json()["errors"][0]["location"]
        assert sha256(content) not in answer.text
    assert service.http.get("/v1/datasets").json()["items"] == []


def test_targets_that_are_no_classes_are_told_with_the_remedy(service: Service) -> None:
    for targets, remedy in (
        (floats((4,)), "convert them to integers"),
        (("I64", (4, 2), b"\0" * 64), "give one number an example"),
    ):
        content = safetensors_file({"inputs": floats((4, 3)), "targets": targets})
        service.upload("datasets", "eval", "data.safetensors", content)
        errors = service.http.post("/v1/datasets", json={"name": "eval"}).json()["errors"]
        shape = f"here {targets[0]} {list(targets[1])}"
        assert [error["message"] for error in errors] == [
            f"must be one integer class an example, shape [N]; {shape}; {remedy}"
        ]


def test_a_dataset_is_one_file(service: Service) -> None:
    service.upload("datasets", "eval", "a.safetensors", examples())
    service.upload("datasets", "eval", "b.safetensors", examples())
    for wanted in ({"name": "eval"}, {"name": "eval", "files": ["c"]}, {"name": "none"}):
        answer = service.http.post("/v1/datasets", json=wanted)
        assert (answer.status_code, answer.json()["code"]) == (422, "dataset.file_missing")
    assert service.http.post("/v1/datasets", json={"name": "eval", "files": ["b.safetensors"]}).status_code == 201


def test_a_dataset_can_be_removed_until_a_fusion_uses_it(service: Service) -> None:
    made = service.dataset("eval")
    assert service.http.delete(f"/v1/datasets/{made['id']}").status_code == 204
    assert service.http.get(f"/v1/datasets/{made['id']}").json()["code"] == "dataset.not_found"
    service.fusion()
    used = service.http.get("/v1/datasets", params={"name": "holdout"}).json()["items"][0]["id"]
    assert service.http.delete(f"/v1/datasets/{used}").json()["code"] == "dataset.in_use"
