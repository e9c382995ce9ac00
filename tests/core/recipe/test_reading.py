from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from cogram_core.errors import RecipeError
from cogram_core.recipe import Recipe
from cogram_core.recipe.reading import plain, read_text, write_text
from tests.core.recipe.documents import document, documents

SOURCES = "sources: [{name: a, checkpoint: a}, {name: b, checkpoint: b}]\n"


def refusal(text: str) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        read_text(text, "r.yaml")
    (problem,) = caught.value.problems
    assert problem.code == "recipe.syntax"
    return problem.location, problem.message


@settings(deadline=None, max_examples=60)
@given(document=documents)
def test_yaml_and_json_are_the_same_model(document: dict[str, Any]) -> None:
    expected = Recipe.from_document(document)
    as_json = json.dumps(document)
    as_yaml = write_text(document)
    assert Recipe.from_document(read_text(as_json, "r.json")) == expected
    assert Recipe.from_document(read_text(as_yaml, "r.yaml")) == expected


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e-3", 0.001),
        ("-.5", -0.5),
        ("1:30", "1:30"),
        ("017", 17),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("<<", "<<"),
        ("'1'", "1"),
        ("!!str 1", "1"),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(word: str, value: object) -> None:
    read = read_text(f"key: {word}", "r.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


def test_guard_off_without_quotes_turns_the_guard_off() -> None:
    recipe = Recipe.from_document(read_text(SOURCES + "method: linear\nguard: off\n", "r.yaml"))
    assert recipe.guard.mode == "off"


def test_json_with_tabs_and_surrogate_pairs_is_read_as_json() -> None:
    assert read_text('{\n\t"a": "\\ud83d\\ude00"}', "r.json") == {"a": "😀"}


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", '{"seed": 1, "seed": 2}', "data: {a: 1, a: 2}"])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    assert "stands twice" in refusal(text)[1]


def test_a_syntax_error_names_line_and_column() -> None:
    assert refusal("sources: []\nstages: [")[0].startswith("r.yaml:2:")
    assert refusal("seed: 1\nb: 2\nseed: 3")[0] == "r.yaml:3:1"


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x",
        "a: &a [x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]",
        "!!python/object:os.system {}",
        "a: !!python/name:os.system ''",
        "a: !!binary aGVsbG8=",
        "a: !!timestamp 2020-01-01",
        "a: !!set {b}",
        "a: !custom 1",
        "a: !!bool maybe",
        "a: !!int many",
        "a: !!map text",
        "a: !!seq text",
        "a: !!int [1]",
        "? [a, b]\n: c",
        "a: 1\n---\nb: 2",
        "a: " + "9" * 5000,
        "a: \x07",
        "[" * 5000,
        '{"a":' * 5000,
        "",
        "- a",
        "[1]",
        "just words",
        "7",
        "null",
    ],
)
def test_what_is_no_plain_mapping_is_refused(text: str) -> None:
    assert refusal(text)[0].startswith("r.yaml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert caught.value.problems[0].code == "recipe.unreadable"
    assert caught.value.problems[0].location == str(path)
    assert "save it as UTF-8" in caught.value.problems[0].message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, fault in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(RecipeError) as caught:
            Recipe.load(path)
        (problem,) = caught.value.problems
        assert (problem.location, problem.code) == (str(path), "recipe.unreadable")
        assert problem.message == f"can't be read ({fault}); check the path and its permissions"


def test_relative_paths_count_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "r.yaml"
    sources = [
        {"name": "a", "checkpoint": "../a", "data": "a.safetensors"},
        {"name": "b", "checkpoint": "/elsewhere/b"},
        {"name": "c", "checkpoint": "~/c"},
        {"name": "d", "checkpoint": "~nobody-is-called-so/d"},
    ]
    path.write_text(json.dumps(document(sources=sources)))
    monkeypatch.chdir("/")
    recipe = Recipe.load(path)
    deep = tmp_path / "deep"
    assert [source.checkpoint for source in recipe.sources] == [
        str(tmp_path / "a"),
        "/elsewhere/b",
        str(home / "c"),
        str(deep / "~nobody-is-called-so/d"),
    ]
    assert recipe.sources[0].data == str(deep / "a.safetensors")
    assert (recipe.data.evaluation, recipe.data.holdout) == (
        str(deep / "eval.safetensors"),
        str(deep / "holdout.safetensors"),
    )


def test_what_json_could_not_hold_is_refused_by_its_place() -> None:
    given = {"a": [1, {2}], "b": {3: 1}, "c": float("nan"), "d": "x\0", "e": {"f": "\ud800"}, "g": b"x", "h\0": 1}
    _, problems = plain(given)
    assert [problem.location for problem in problems] == ["a[1]", "b", "c", "d", "e.f", "g", ""]


def test_paths_and_tuples_of_python_callers_are_taken() -> None:
    assert plain({"a": (Path("x"), Path("y/z"))}) == ({"a": ["x", "y/z"]}, [])


def test_a_mapping_of_very_many_keys_is_refused_without_a_word_on_each() -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.from_document({f"key{place}": 1 for place in range(10_001)})
    (problem,) = refused.value.problems
    assert (problem.code, problem.location) == ("recipe.too_many_keys", "")


def test_deep_nesting_is_refused_without_recursing_into_it() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    _, (problem,) = plain({"a": value})
    assert problem.code == "recipe.too_deep"
    while isinstance(value, list):  # taken apart level by level: freeing it at once would recurse
        (value,) = value


@pytest.mark.parametrize(
    "word", ["0E0", "1e5", "12", ".5", "off", "yes", "null", "~", "true", "1:30", "2026-11-21", "", "a: b"]
)
def test_text_that_looks_like_something_else_is_written_as_text(word: str) -> None:
    assert read_text(write_text({"key": word, "list": [word]}), "r.yaml") == {"key": word, "list": [word]}
    assert yaml.safe_load(write_text({"key": word})) == {"key": word}
