"""What a soak does, drawn from its seed alone: networks, jobs, what happens to each, kills, the full disk."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

USES = ("evaluation", "holdout", "training")
PARTS = ("worker", "worker's child", "API", "dispatcher", "broker")
Outcome = Literal["succeeds", "fails", "refused"]

_TINY = ((8,), (16,), (24, 12), (48,), (32, 32))
_MIDDLING = ((160, 128), (192, 96))
_EXAMPLES = {"tiny": 96, "middling": 768}
_FEATURES, _CLASSES = 16, 5
_RESUMABLY = 0.6  # of all uploads
_LARGE = 50  # jobs; smaller soaks are over within a minute, and so are their full disks


@dataclass(frozen=True)
class Family:
    """Networks of one shape and the data they understand; ``members`` and ``data`` are names in the service."""

    number: int
    hidden: tuple[int, ...]
    examples: int

    @property
    def features(self) -> int:
        return _FEATURES + self.number  # no two families fit together

    @property
    def classes(self) -> int:
        return _CLASSES

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(f"family{self.number}-{letter}" for letter in "abc")

    @property
    def broken(self) -> str:
        """A member with a weight that is no number."""
        return f"family{self.number}-nan"

    def data(self, use: str) -> str:
        return f"family{self.number}-{use}"

    def names(self) -> tuple[str, ...]:
        return (*self.members, self.broken, *map(self.data, USES))


@dataclass(frozen=True)
class Job:
    """One fusion to ask for. Its number is the recipe's seed as well: by that its rows are found."""

    number: int
    kind: str
    family: Family
    recipe: dict[str, Any]
    outcome: Outcome
    refused_at: str = ""  # the place that a refusal has to name
    own_source: str | None = None  # a checkpoint that is uploaded for this job alone
    cut_at: tuple[float, ...] = ()  # shares of that upload after which its line is cut
    resumably: bool = True  # by tus, or else as one PUT
    has_key: bool = True
    times_posted: int = 1
    cancel_after: float | None = None
    follows: bool = False
    leaves_stream_after: int = 0  # events; 0: stays
    pieces: int = 1  # of each download

    def names(self) -> set[str]:
        """What the recipe refers to."""
        return {source["checkpoint"] for source in self.recipe["sources"]} | set(self.recipe.get("data", {}).values())


@dataclass(frozen=True)
class Bulk:
    """A larger checkpoint that is only brought, and has to be there at the end."""

    number: int
    values: int
    cut_at: tuple[float, ...]
    resumably: bool

    @property
    def name(self) -> str:
        return f"bulk{self.number}"


@dataclass(frozen=True)
class Filling:
    """The disk is full for a while, from when so much of a round is done."""

    share: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn."""

    seed: int
    families: tuple[Family, ...]
    jobs: tuple[Job, ...]
    bulk: tuple[Bulk, ...]
    cut_at: dict[str, tuple[tuple[float, ...], bool]]  # of the families' own files, and whether they come by tus
    fillings: tuple[tuple[Filling, ...], ...]  # while files are brought, and while jobs run

    def kills(self, least: float, most: float) -> Iterator[tuple[float, str]]:
        """A pause of seconds between the two, then a part to kill; without end. In five kills each part has its turn."""
        rng = random.Random(f"kills {self.seed}")
        while True:
            for part in rng.sample(PARTS, len(PARTS)):
                yield rng.uniform(least, most), part


def draw(seed: int, jobs: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    shapes = [(hidden, _EXAMPLES["tiny"]) for hidden in _TINY] + [
        (hidden, _EXAMPLES["middling"]) for hidden in _MIDDLING
    ]
    families = tuple(Family(number, hidden, examples) for number, (hidden, examples) in enumerate(shapes))
    kinds = list(itertools.islice(itertools.cycle(_DECK), jobs))
    rng.shuffle(kinds)
    seconds, shares = ((4.0, 10.0), (0.1, 0.5)) if jobs >= _LARGE else ((1.0, 2.0), (0.3,))
    names = [name for family in families for name in family.names()]
    return Plan(
        seed,
        families,
        tuple(_job(rng, number, kind, families) for number, kind in enumerate(kinds)),
        tuple(
            Bulk(number, rng.randrange(500_000, 1_500_000), _cuts(rng), rng.random() < _RESUMABLY)
            for number in range(jobs // 10)
        ),
        {name: (_cuts(rng), rng.random() < _RESUMABLY) for name in names},
        fillings=(
            (Filling(rng.uniform(0.3, 0.6), rng.uniform(*seconds)),),
            tuple(Filling(share + rng.uniform(0.0, 0.2), rng.uniform(*seconds)) for share in shares),
        ),
    )


# One hand of twenty kinds, dealt again and again, so that even a short soak has some of each.
_DECK = (
    "neuron",
    "linear",
    "cancelled",
    "bad stage",
    "layer",
    "finetune",
    "fisher",
    "nan",
    "middling",
    "linear without data",
    "all levels",
    "cancelled",
    "bad shapes",
    "weight",
    "shards",
    "middling",
    "fisher",
    "neuron",
    "bad reference",
    "middling",
)


def _job(rng: random.Random, number: int, kind: str, families: tuple[Family, ...]) -> Job:
    long = kind in {"middling", "cancelled"}
    family = rng.choice([one for one in families if (one.examples == _EXAMPLES["middling"]) == long])
    own = f"job{number}-own" if rng.random() < 0.3 and not kind.startswith("bad") else None
    recipe = _recipe(rng, number, kind, family, own)
    outcome, place = _spoil(rng, kind, recipe, families, family)
    has_key = rng.random() < 0.8
    return Job(
        number,
        kind,
        family,
        recipe,
        outcome,
        refused_at=place,
        own_source=own,
        cut_at=_cuts(rng),
        resumably=rng.random() < _RESUMABLY,
        has_key=has_key,
        times_posted=rng.choice((1, 1, 2)) if has_key else 1,
        cancel_after=rng.uniform(0.0, 8.0) if kind == "cancelled" else None,
        follows=rng.random() < 0.6,
        leaves_stream_after=rng.choice((0, 1, 3)),
        pieces=rng.choice((1, 2, 5)),
    )


def _recipe(rng: random.Random, number: int, kind: str, family: Family, own: str | None) -> dict[str, Any]:
    count = rng.choice((2, 2, 3))
    sources = [*family.members[: count - 1], own] if own else [*family.members[:count]]
    recipe: dict[str, Any] = {
        "sources": [{"name": f"s{place}", "checkpoint": name} for place, name in enumerate(sources)],
        "stages": _STAGES.get(kind, [{"method": "linear"}]),
        "seed": number,
        "device": "cpu",
        "threads": 1,
    }
    if kind != "linear without data":
        recipe["data"] = {"evaluation": family.data("evaluation"), "holdout": family.data("holdout")}
    if kind == "finetune":
        recipe["data"]["training"] = family.data("training")
    if kind == "shards":
        recipe["output"] = {"max_shard_bytes": 4000, "dtype": rng.choice(("float16", "bfloat16", "float64"))}
    if kind == "linear":
        recipe["sources"][0]["weight"] = rng.choice((0.5, 2.0, 3.0))
    return recipe


def _cogram(granularity: str, sweeps: int = 2) -> dict[str, Any]:
    counts = {"layer": sweeps, "neuron": sweeps, "weight": 1}
    return {"method": "cogram", "granularity": granularity, "max_sweeps": counts}


# Every neuron on every example, without a gain too small to go on for: seconds, not milliseconds.
_LONG = {
    "method": "cogram",
    "granularity": "neuron",
    "prototypes": {"kind": "all"},
    "min_gain": 0.0,
    "max_sweeps": {"layer": 1, "neuron": 4, "weight": 1},
}
_STAGES: dict[str, list[dict[str, Any]]] = {
    "fisher": [{"method": "fisher", "examples": 48}],
    "layer": [{"method": "linear"}, _cogram("layer")],
    "neuron": [{"method": "linear"}, _cogram("neuron")],
    "weight": [{"method": "linear"}, _cogram("weight")],
    "all levels": [{"method": "fisher", "examples": 48}, _cogram("layer"), _cogram("neuron")],
    "finetune": [{"method": "linear"}, {"method": "finetune", "kickoff_epochs": 2, "epochs": 4}],
    "middling": [{"method": "fisher", "examples": 128}, _LONG],
    "cancelled": [{"method": "linear"}, _LONG],
    "shards": [{"method": "linear"}, _cogram("layer", 1)],
}


def _spoil(
    rng: random.Random, kind: str, recipe: dict[str, Any], families: tuple[Family, ...], family: Family
) -> tuple[Outcome, str]:
    """Puts in what makes a recipe fail, for the kinds that have to; the place that the refusal has to name."""
    match kind:
        case "bad stage":
            recipe["stages"] = [{"method": rng.choice(("cogramm", "fischer", "avarage"))}]
            return "refused", "stages[0].method"
        case "bad shapes":
            stranger = rng.choice([one for one in families if one.number != family.number])
            recipe["sources"][1]["checkpoint"] = stranger.members[0]
            return "refused", "0.weight"
        case "bad reference":
            recipe["sources"][0]["checkpoint"] = "never-uploaded"
            return "refused", "sources[0].checkpoint"
        case "nan":
            recipe["sources"][-1]["checkpoint"] = family.broken
            return "fails", ""
        case _:
            return "succeeds", ""


def _cuts(rng: random.Random) -> tuple[float, ...]:
    """After which shares of its bytes an upload is cut: none, one or two."""
    return tuple(sorted(rng.uniform(0.05, 0.95) for _ in range(rng.choice((0, 0, 1, 2)))))
