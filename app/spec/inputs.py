"""What goes into a network: its signature, and what is done to stored samples before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.spec.strict import SpecModel


def _a_size(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("invalid_input_shape", "a dimension is a whole number of at least 1 or a name")
    if isinstance(value, int) and not 1 <= value <= 1 << 31:
        raise PydanticCustomError("invalid_input_shape", "a dimension lies between 1 and 2147483648")
    if isinstance(value, str) and not 1 <= len(value) <= 64:
        raise PydanticCustomError("invalid_input_shape", "the name of a dimension has 1 to 64 characters")
    return value


Dimension = Annotated[int | str, BeforeValidator(_a_size)]


class InputSignature(SpecModel):
    """One input of the network: `shape` holds whole numbers, or names for dimensions that are free."""

    name: str = Field(min_length=1, max_length=255)
    dtype: Literal["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"] = (
        "float32"
    )
    shape: list[Dimension] = Field(min_length=0, max_length=8)


class FixedArgument(SpecModel):
    """An argument of a TorchScript module that is no tensor: it is no input of the network, and keeps this value."""

    name: str = Field(min_length=1, max_length=255)
    value: int | float | bool | Annotated[str, Field(max_length=1024)] | None


def _kind_of_argument(entry: Any) -> str:
    has_value = "value" in entry if isinstance(entry, dict) else isinstance(entry, FixedArgument)
    return "FixedArgument" if has_value else "InputSignature"


#: One row of a signature: a tensor, or an argument with a fixed value.
SignatureRow = Annotated[
    Annotated[InputSignature, Tag("InputSignature")] | Annotated[FixedArgument, Tag("FixedArgument")],
    Discriminator(_kind_of_argument),
]


class Preprocess(SpecModel):
    """`(float32(x) * scale - mean) / std`, mean and std on the channel axis of `layout`."""

    scale: float = Field(default=1.0, gt=0, le=1e6)
    mean: list[float] = Field(default=[0.0], min_length=1, max_length=4096)
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[1.0], min_length=1, max_length=4096)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
