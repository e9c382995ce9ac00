"""Checkpoints: made of uploaded files whose headers are good, or not at all."""

from __future__ import annotations

import hashlib
import json
import struct

from sqlalchemy import func, select

from app.store.models import Checkpoint
from tests.app.factories import Service, chain, floats, safetensors_file, sha256


def _count(service: Service) -> int:
    with service.context.database.reading() as session:
        return session.scalar(select(func.count()).select_from(Checkpoint)) or 0


def test_a_checkpoint_is_made_of_an_uploaded_file(service: Service) -> None:
    content = chain()
    service.upload("checkpoints", "net", "model.safetensors", content)
    answer = service.http.post("/v1/checkpoints", json={"name": "net"})
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/checkpoints/{made['id']}"
    digest = sha256(content)
    assert made["id"].startswith("ckpt_")
    assert made["sha256"] == hashlib.sha256(f"{digest}  model.safetensors\n".encode()).hexdigest()
    assert (made["tensors"], made["parameters"], made["dtypes"]) == (4, 26, ["F32"])
    assert made["network_kind"] == "sequential"
    assert made["files"] == [{"path": "model.safetensors", "size": len(content), "sha256": digest}]
    assert made["created_at"].endswith("Z")
    assert service.http.get(answer.headers["Location"]).json() == made


def test_a_configuration_that_names_an_architecture_makes_a_transformers_checkpoint(service: Service) -> None:
    service.upload("checkpoints", "bert", "model.safetensors", safetensors_file({"a.weight": floats((2, 3, 4))}))
    service.upload("checkpoints", "bert", "config.json", json.dumps({"architectures": ["BertModel"]}).encode())
    assert service.http.post("/v1/checkpoints", json={"name": "bert"}).json()["network_kind"] == "transformers"


def test_a_checkpoint_of_shards_and_an_index_lists_all_its_tensors(service: Service) -> None:
    shards = {
        "model-00001-of-00002.safetensors": {"a.weight": floats((2, 3))},
        "model-00002-of-00002.safetensors": {"b.weight": floats((2, 2))},
    }
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    service.upload(
        "checkpoints", "net", "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode()
    )
    for path, tensors in shards.items():
        service.upload("checkpoints", "net", path, safetensors_file(tensors))
    made = service.http.post("/v1/checkpoints", json={"name": "net"}).json()
    assert (made["tensors"], len(made["files"])) == (2, 3)
    page = service.http.get(f"/v1/checkpoints/{made['id']}/tensors", params={"limit": 1}).json()
    assert page["items"] == [
        {"name": "a.weight", "dtype": "F32", "shape": [2, 3], "file": "model-00001-of-00002.safetensors"}
    ]
    following = {"limit": 2, "page_token": page["next_page_token"]}
    page = service.http.get(f"/v1/checkpoints/{made['id']}/tensors", params=following).json()
    assert [tensor["name"] for tensor in page["items"]] == ["b.weight"]
    assert page["next_page_token"] is None


def test_a_damaged_header_is_refused_with_every_problem_and_nothing_is_made(service: Service) -> None:
    header = {
        "x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 99]},
    }
    encoded = json.dumps(header).encode()
    damaged = struct.pack("<Q", len(encoded)) + encoded + b"\0" * 8
    service.upload("checkpoints", "net", "model.safetensors", damaged)
    answer = service.http.post("/v1/checkpoints", json={"name": "net"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "checkpoint.invalid")
    assert len(problem["errors"]) >= 2
    assert all(error["location"].startswith("model.safetensors") for error in problem["errors"])
    assert str(service.context.settings.blob_dir) not in answer.text
    assert _count(service) == 0


def test_files_that_were_not_uploaded_are_all_listed(service: Service) -> None:
    service.upload("checkpoints", "net", "model.safetensors", chain())
    answer = service.http.post("/v1/checkpoints", json={"name": "net", "files": ["x", "model.safetensors", "y"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint.files_missing")
    detail = "files: 'x' was not uploaded under the name 'net'; PUT it first (and 1 more, see errors)"
    assert answer.json()["detail"] == detail
    assert ["'x'" in answer.json()["errors"][0]["message"], "'y'" in answer.json()["errors"][1]["message"]] == [
        True
    ] * 2
    assert service.http.post("/v1/checkpoints", json={"name": "other"}).json()["code"] == "checkpoint.files_missing"


def test_a_path_that_is_a_file_and_a_folder_at_once_is_refused(service: Service) -> None:
    for path in ("model.safetensors", "config.json", "config.json/deep/x", "configs/x"):
        service.upload("checkpoints", "net", path, chain() if path == "model.safetensors" else b"{}")
    answer = service.http.post("/v1/checkpoints", json={"name": "net"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "checkpoint.paths_conflict")
    assert [error["location"] for error in problem["errors"]] == ["files"]
    for words in ("'config.json' is a file and a folder at once", "'config.json/deep/x'", "list the ones you want"):
        assert words in problem["errors"][0]["message"]
    wanted = {"name": "net", "files": ["model.safetensors", "config.json"]}
    assert service.http.post("/v1/checkpoints", json=wanted).status_code == 201


def test_uploads_are_used_up_by_the_checkpoint_made_of_them(service: Service) -> None:
    service.checkpoint("net")
    assert service.http.post("/v1/checkpoints", json={"name": "net"}).status_code == 422


def test_checkpoints_are_listed_newest_first_in_pages(service: Service) -> None:
    ids = [service.checkpoint(name, chain(hidden))["id"] for name, hidden in (("a", 1), ("b", 2), ("a", 3))]
    page = service.http.get("/v1/checkpoints", params={"limit": 2}).json()
    assert [item["id"] for item in page["items"]] == ids[:0:-1]
    page = service.http.get("/v1/checkpoints", params={"limit": 2, "page_token": page["next_page_token"]}).json()
    assert [item["id"] for item in page["items"]] == ids[:1]
    assert page["next_page_token"] is None
    named = service.http.get("/v1/checkpoints", params={"name": "a"}).json()["items"]
    assert [item["id"] for item in named] == [ids[2], ids[0]]


def test_a_page_token_of_ones_own_making_is_refused(service: Service) -> None:
    for token in ("x", "e30", "WzFd", "bnVsbA", "W1tbW1tb", "WyJcdTAwMDAiXQ"):
        answer = service.http.get("/v1/checkpoints", params={"page_token": token})
        assert (answer.status_code, answer.json()["code"]) == (422, "page.token"), token


def test_a_checkpoint_can_be_removed_until_a_fusion_uses_it(service: Service) -> None:
    made = service.checkpoint("net")
    assert service.http.delete(f"/v1/checkpoints/{made['id']}").status_code == 204
    assert service.http.get(f"/v1/checkpoints/{made['id']}").status_code == 404
    fusion_id = service.fusion()
    used = service.http.get("/v1/checkpoints", params={"name": "a"}).json()["items"][0]["id"]
    answer = service.http.delete(f"/v1/checkpoints/{used}")
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint.in_use")
    assert fusion_id in answer.json()["detail"]
    service.http.post(f"/v1/fusions/{fusion_id}/cancel")
    service.http.delete(f"/v1/fusions/{fusion_id}")
    assert service.http.delete(f"/v1/checkpoints/{used}").status_code == 204


def test_an_unknown_checkpoint_is_a_404(service: Service) -> None:
    for method, url in [("GET", ""), ("GET", "/tensors"), ("DELETE", "")]:
        for unknown in ("ckpt_0", "%00", "x" * 300):
            answer = service.http.request(method, f"/v1/checkpoints/{unknown}{url}")
            assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint.not_found"), unknown
