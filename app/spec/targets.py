"""Targets of pruning: how much of the uploaded model may be kept, as a share or as a count."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s?%")


class Target:
    """A ceiling: `share` of the uploaded model's count in (0, 1), or an absolute `count` of at least 1."""

    __slots__ = ("_way", "count", "share")

    def __init__(self, *, share: float | None = None, count: int | None = None) -> None:
        assert (share is None) != (count is None)
        self.share, self.count = share, count
        self._way: Callable[[float], float] | None = None

    def eased(self, way: Callable[[float], float]) -> Target:
        """The target on the way to this one: `way` maps the share that this one leaves to the share to leave first."""
        if self.share is not None:
            return Target(share=way(self.share))
        target = Target(count=self.count)
        target._way = way
        return target

    def resolve(self, whole: int) -> int:
        """The largest count that still meets the target, of an uploaded model that counts `whole`."""
        if self.count is None:
            return int((self.share or 0.0) * whole)
        return self.count if self._way is None else int(self._way(min(self.count / whole, 1.0)) * whole)

    def __repr__(self) -> str:
        return f"Target({self.asked!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and (self.share, self.count) == (other.share, other.count)

    def __hash__(self) -> int:
        return hash((self.share, self.count))

    @property
    def asked(self) -> str | int:
        """The target as the caller would write it: `50%`, or a number."""
        return f"{(self.share or 0.0) * 100:.9g}%" if self.count is None else self.count


def _parse(value: Any) -> Target:
    if isinstance(value, Target):
        return value
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value.strip())
        if not match:
            raise PydanticCustomError("invalid_target", 'a target is a percentage such as "50%" or a whole number')
        share = float(match[1]) / 100
        if not 0 < share < 1:
            raise PydanticCustomError("out_of_range", "a target in percent lies between 0% and 100%, both excluded")
        return Target(share=share)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("wrong_type", 'a target is a percentage such as "50%" or a whole number')
    if not 1 <= value <= 10**18:
        raise PydanticCustomError("out_of_range", "an absolute target is at least 1")
    return Target(count=value)


PruneTarget = Annotated[
    Target,
    BeforeValidator(_parse),
    PlainSerializer(lambda target: target.asked),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": r"^\d{1,3}(\.\d{1,9})?\s?%$"}, {"type": "integer", "minimum": 1}]}
    ),
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
    WithJsonSchema({"type": "string", "pattern": r"^\d{1,3}(\.\d{1,9})?\s?%$"}),
]
