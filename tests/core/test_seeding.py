from __future__ import annotations

from cogram_core.seeding import generator


def draw(*keys: str | int) -> list[float]:
    seed, *rest = keys
    assert isinstance(seed, int)
    result: list[float] = generator(seed, *rest).random(4).tolist()
    return result


def test_randomness_depends_on_its_keys_alone() -> None:
    first = draw(0, 1, "prototypes", 3)
    generator(5).random(100)
    assert draw(0, 1, "prototypes", 3) == first


def test_every_key_changes_the_draw() -> None:
    drawn = [draw(0, 1, "a"), draw(1, 1, "a"), draw(0, 2, "a"), draw(0, 1, "b"), draw(0, 1, "a", 0), draw(0)]
    assert len({tuple(values) for values in drawn}) == len(drawn)
