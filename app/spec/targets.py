"""Targets of pruning: how much of the uploaded model may be kept, as a share or as a count."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import copy
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s?%")


class Target:
    """A ceiling: `share` of the uploaded model's figure in (0, 1), or an absolute `count` above 0."""

    __slots__ = ("_way", "count", "share")

    def __init__(self, *, share: float | None = None, count: float | None = None) -> None:
        assert (share is None) != (count is None)
        self.share, self.count = share, count
        self._way: Callable[[float], float] | None = None

    def eased(self, way: Callable[[float], float]) -> Target:
        """The target on the way to this one: `way` maps the share that this one leaves to the share to leave first."""
        target = copy(self)
        if self.share is not None:
            target.share = way(self.share)
        else:
            target._way = way
        return target

    def limit(self, whole: float) -> float:
        """The most that still meets the target, of an uploaded model whose figure is `whole`."""
        if self.count is None:
            return (self.share or 0.0) * whole
        return self.count if self._way is None else self._way(min(self.count / whole, 1.0)) * whole

    def resolve(self, whole: int) -> int:
        """`limit` of what is counted: the largest whole number."""
        return int(self.limit(whole))

    def __repr__(self) -> str:
        return f"Target({self.asked!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and (self.share, self.count) == (other.share, other.count)

    def __hash__(self) -> int:
        return hash((self.share, self.count))

    @property
    def asked(self) -> Any:
        """The target as the caller would write it: `50%`, or a number."""
        return f"{(self.share or 0.0) * 100:.9g}%" if self.count is None else self.count


class LatencyTarget(Target):
    """A ceiling on the shortest time of one forward pass, in milliseconds or as a share of the uploaded model's.

    `batch` rows go in at once: None stands for the only number that the file takes, else for 1.
    """

    __slots__ = ("batch",)

    def __init__(self, *, share: float | None = None, count: float | None = None, batch: int | None = None) -> None:
        super().__init__(share=share, count=count)
        self.batch = batch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyTarget) and super().__eq__(other) and self.batch == other.batch

    def __hash__(self) -> int:
        return hash((self.share, self.count, self.batch))

    @property
    def asked(self) -> Any:
        """As `Target.asked`, or `{value, batch}`."""
        value = super().asked
        return value if self.batch is None else {"value": value, "batch": self.batch}


def _share(text: str, kind: str = "a whole number") -> float:
    match = _PERCENT.fullmatch(text.strip())
    if not match:
        raise PydanticCustomError("invalid_target", 'a target is a percentage such as "50%" or {kind}', {"kind": kind})
    share = float(match[1]) / 100
    if not 0 < share < 1:
        raise PydanticCustomError("out_of_range", "a target in percent lies between 0% and 100%, both excluded")
    return share


def _parse(value: Any) -> Target:
    if isinstance(value, Target):
        return value
    if isinstance(value, str):
        return Target(share=_share(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("wrong_type", 'a target is a percentage such as "50%" or a whole number')
    if not 1 <= value <= 10**18:
        raise PydanticCustomError("out_of_range", "an absolute target is at least 1")
    return Target(count=value)


_PERCENT_SCHEMA = {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,9})?\s?%$"}

PruneTarget = Annotated[
    Target,
    BeforeValidator(_parse),
    PlainSerializer(lambda target: target.asked),
    WithJsonSchema({"anyOf": [_PERCENT_SCHEMA, {"type": "integer", "minimum": 1}]}),
]


def _parse_share(value: Any) -> Target:
    target = _parse(value)
    if target.share is None:
        raise PydanticCustomError("invalid_target", 'sparsity is a percentage such as "80%"')
    return target


#: The least share of zeros.
SparsityTarget = Annotated[
    Target,
    BeforeValidator(_parse_share),
    PlainSerializer(lambda target: target.asked),
    WithJsonSchema(_PERCENT_SCHEMA),
]

MOST_BATCH = 4096


def _parse_latency(value: Any) -> LatencyTarget:
    if isinstance(value, LatencyTarget):
        return value
    if not isinstance(value, dict):
        return _latency(value, None)
    if not value.keys() <= {"value", "batch"}:
        raise PydanticCustomError("extra_forbidden", "a latency target has a value and a batch, nothing else")
    if "value" not in value:
        raise PydanticCustomError("missing", "a latency target needs a value")
    batch = value.get("batch")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int)):
        raise PydanticCustomError("wrong_type", "the batch of a latency target is a whole number")
    if batch is not None and not 1 <= batch <= MOST_BATCH:
        raise PydanticCustomError(
            "out_of_range", "the batch of a latency target lies between 1 and {most}", {"most": MOST_BATCH}
        )
    return _latency(value["value"], batch)


def _latency(value: Any, batch: int | None) -> LatencyTarget:
    if isinstance(value, str):
        return LatencyTarget(share=_share(value, "a number of milliseconds"), batch=batch)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError(
            "wrong_type", 'a latency target is a percentage such as "50%" or a number of milliseconds'
        )
    if not (math.isfinite(value) and 0 < value <= 1e9):
        raise PydanticCustomError("out_of_range", "a latency target lies above 0 ms and below 1e9 ms")
    return LatencyTarget(count=value, batch=batch)


_MILLISECONDS = {"anyOf": [_PERCENT_SCHEMA, {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}]}
_BATCH = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_BATCH}, {"type": "null"}]}
#: The longest that the shortest forward pass may take.
PruneLatency = Annotated[
    LatencyTarget,
    BeforeValidator(_parse_latency),
    PlainSerializer(lambda target: target.asked),
    WithJsonSchema(
        {
            "anyOf": [
                *_MILLISECONDS["anyOf"],
                {
                    "type": "object",
                    "properties": {"value": _MILLISECONDS, "batch": _BATCH},
                    "required": ["value"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
