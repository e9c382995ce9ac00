"""Datasets: one uploaded file with inputs and targets."""

from __future__ import annotations

import struct

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
    no_targets = safetensors_file({"inputs": floats((4, 3)), "targets": ("BOOL", (4,), b"\0" * 4)})
    for content, code in [
        (chain(), "dataset.invalid"),
        (no_targets, "dataset.invalid"),
        (b"x", "checkpoint.invalid"),
    ]:
        service.upload("datasets", "eval", "my/data.safetensors", content)
        answer = service.http.post("/v1/datasets", json={"name": "eval"})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert "my/data.safetensors" in answer.json()["errors"][0]["location"]
        assert sha256(content) not in answer.text
    assert service.http.get("/v1/datasets").json()["items"] == []


def test_texts_are_a_dataset_and_wrong_lines_are_told_under_the_callers_name(service: Service) -> None:
    service.upload("datasets", "texts", "texts.jsonl", b'{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    made = service.http.post("/v1/datasets", json={"name": "texts"}).json()
    assert (made["examples"], made["input_shape"], made["target_max"], made["loss"]) == (2, [0], 1, "cross_entropy")
    service.upload("datasets", "broken", "broken.jsonl", b'{"text": "good"}\n{"label": 0}\n')
    (error,) = service.http.post("/v1/datasets", json={"name": "broken"}).json()["errors"]
    assert error["location"] == "broken.jsonl: line 2"


def test_targets_that_are_none_are_told_with_the_remedy(service: Service) -> None:
    for targets, remedy in (
        (("BOOL", (4,), b"\0" * 4), "convert them to integers"),
        (("I64", (4, 2), b"\0" * 64), "give one number an example"),
    ):
        content = safetensors_file({"inputs": floats((4, 3)), "targets": targets})
        service.upload("datasets", "eval", "data.safetensors", content)
        (error,) = service.http.post("/v1/datasets", json={"name": "eval"}).json()["errors"]
        assert error["message"].endswith(f"here {targets[0]} {list(targets[1])}; {remedy}")


def test_a_dataset_of_values_tells_their_shape(service: Service) -> None:
    content = safetensors_file({"inputs": floats((4, 3)), "targets": floats((4, 2))})
    service.upload("datasets", "eval", "data.safetensors", content)
    made = service.http.post("/v1/datasets", json={"name": "eval"}).json()
    assert (made["loss"], made["target_shape"]) == ("mean_squared_error", [2])
    assert (made["target_min"], made["target_max"], made["token_min"], made["token_max"]) == (None,) * 4
    assert service.http.get(f"/v1/datasets/{made['id']}").json() == made


def test_a_dataset_of_tokens_tells_its_ids_and_labels(service: Service) -> None:
    def tokens(*values: int) -> tuple[str, tuple[int, ...], bytes]:
        return "I32", (2, 3), struct.pack("<6i", *values)

    content = safetensors_file({"input_ids": tokens(4, 1, 2, 3, 3, 7), "labels": tokens(-100, 1, 2, 3, -100, 5)})
    service.upload("datasets", "eval", "data.safetensors", content)
    made = service.http.post("/v1/datasets", json={"name": "eval"}).json()
    assert (made["loss"], made["input_shape"], made["target_shape"]) == ("causal_lm", [3], [3])
    assert (made["target_min"], made["target_max"], made["token_min"], made["token_max"]) == (1, 5, 1, 7)


def test_data_of_another_kind_than_the_network_is_refused_before_anything_is_queued(service: Service) -> None:
    service.checkpoint("a", chain())
    service.checkpoint("b", chain())
    service.dataset("holdout")
    content = safetensors_file({"inputs": floats((4, 3)), "targets": floats((4, 7))})
    service.upload("datasets", "eval", "data.safetensors", content)
    assert service.http.post("/v1/datasets", json={"name": "eval"}).status_code == 201
    sources = [{"name": name, "checkpoint": name} for name in ("a", "b")]
    recipe = {"sources": sources, "data": {"evaluation": "eval", "holdout": "holdout"}, "method": "fisher"}
    errors = service.http.post("/v1/fusions/validate", json=recipe).json()["errors"]
    assert [(error["location"], error["code"]) for error in errors] == [
        ("data.evaluation: targets", "dataset.wrong_output")
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
