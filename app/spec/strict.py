"""What every part of a spec is made of: strict models, names from the catalog, globs on layer names."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.spec.catalog import known_names, structures_of

#: What a step says of its criterion.
CRITERION = (
    "What says which units go first. Where the spec names none, there is a data set and what goes are channels, it is "
    "`reconstruction`."
)
Glob = Annotated[str, Field(min_length=1, max_length=512)]


class SpecModel(BaseModel):
    """Strict base: unknown keys are errors, values are not coerced, what was parsed does not change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


def one_of(kind: str) -> AfterValidator:
    """A name that the catalog has among the entries of this kind."""

    def check(name: str) -> str:
        if name not in known_names(kind):
            known = ", ".join(known_names(kind))
            raise PydanticCustomError("unknown_name", "is not in the catalog; known: {known}", {"known": known})
        return name

    return AfterValidator(check)


def scoring(criterion: str, structure: str) -> str:
    """The criterion, where it scores that structure or is unknown."""
    if criterion in known_names("criteria") and structure not in structures_of(criterion):
        names = {"criterion": criterion, "known": ", ".join(structures_of(criterion)), "structure": structure}
        raise PydanticCustomError("criterion_mismatch", "{criterion} scores {known}, not {structure}", names)
    return criterion
