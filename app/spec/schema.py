"""The compression spec: what a job is asked to do. Torch-free, strict, and the contract between app and engine.

Every model forbids unknown keys and coerces nothing but whole numbers to floats. Serialised with
`model_dump(mode="json", by_alias=True)` it is the spec "as completed with defaults" that a job gives back.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.spec.catalog import known_names
from app.spec.inputs import InputSignature, Preprocess, SignatureRow
from app.spec.sensitivity import Sensitivity
from app.spec.strict import CRITERION, Glob, SpecModel, one_of, scoring
from app.spec.targets import PruneLatency, PruneTarget, SparsityTarget

MAX_STEPS = 16
_PATTERN = re.compile(r"(\d{1,2}):(\d{1,2})")


def _a_structure(name: str) -> str:
    if name in known_names("structures") and name != "n:m":
        return name
    match = _PATTERN.fullmatch(name)
    if match is None:
        known = ", ".join(known_names("structures"))
        raise PydanticCustomError("unknown_name", "is not in the catalog; known: {known}", {"known": known})
    if not 1 <= int(match[1]) < int(match[2]) <= 64:
        raise PydanticCustomError("out_of_range", "of n:m, n is at least 1 and below m, m at most 64")
    return name


def _a_whole_number(value: Any) -> Any:
    # Literal[1] compares by value, and True == 1.0 == 1.
    if type(value) is not int:
        raise PydanticCustomError("wrong_type", "is a whole number")
    return value


class Recovery(SpecModel):
    """What repairs a cut without labels: a least-squares refit of the consumers, and BatchNorm re-estimation.

    With `batchnorm` alone, layers that no BatchNorm follows get the mean and variance of the original's outputs.
    """

    refit: bool = True
    batchnorm: bool = True
    samples: int = Field(default=512, ge=1, le=100_000)
    distill: int = Field(
        default=0, ge=0, le=1_000_000, description="Steps of label-free distillation from the original after the refit."
    )


class SparsityTraining(SpecModel):
    """Training before the first cut, with `strength * penalty` added to the loss."""

    penalty: Annotated[str, one_of("penalties")] = "l1"
    strength: float = Field(default=1e-4, gt=0, le=1e3)
    epochs: int = Field(default=2, ge=1, le=10_000)


class PruneTargets(SpecModel):
    """Ceilings on the uploaded model's figures, every one of which is met; `sparsity` is a floor on the share of zeros."""

    macs: PruneTarget | None = None
    params: PruneTarget | None = None
    size: PruneTarget | None = None
    latency_ms: PruneLatency | None = None
    sparsity: SparsityTarget | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> PruneTargets:
        if not self.given:
            names = ", ".join(type(self).model_fields)
            raise PydanticCustomError("target_needed", "give at least one of {names}", {"names": names})
        return self

    @property
    def given(self) -> frozenset[str]:
        """The names of the targets that are set."""
        return frozenset(name for name in type(self).model_fields if getattr(self, name) is not None)


class Prune(SpecModel):
    """Remove coupled groups of channels (or whole layers, single weights, tiles of them) until the target is met, then recover."""

    structure: Annotated[str, AfterValidator(_a_structure)] = "channels"
    block: list[Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        validate_default=True,
        description="Of `blocks`: how many outputs and inputs of a layer a tile spans; [4, 4] where nothing is said.",
    )
    criterion: Annotated[str, one_of("criteria")] = Field(default="l1", description=CRITERION)
    combine: Literal["readers", "makers", "all"] = Field(
        default="readers",
        description="Which weights score a channel: of the layers that read it, of those that make it, or of both.",
    )
    scope: Literal["global", "layer", "isomorphic"] = "global"
    allocation: Literal["auto", "score", "sensitivity"] = Field(
        default="auto",
        description="What decides between groups in a global cut: scores, or what the outputs lose without some of a group; "
        "auto: the latter where to measure it takes seconds, the criterion is no control, and the scores are not losses that "
        "hold once a refit follows; then in deep cuts a few exchanges between groups are tried, refitted and compared, where "
        "that too takes seconds.",
    )
    target: PruneTargets | None = Field(default=None, validate_default=True)
    iterations: int = Field(default=1, ge=1, le=100, description="Cuts in which the target is reached.")
    schedule: Literal["linear", "cubic", "geometric"] = "geometric"
    epochs_between: int = Field(default=1, ge=0, le=1000, description="Epochs of distillation between two cuts.")
    include: list[Glob] = Field(
        default=["*"], min_length=1, max_length=1000, description="Globs on the names of layers that may be cut."
    )
    exclude: list[Glob] = Field(
        default=[],
        max_length=1000,
        description="Globs on the names of layers that leave the job as they came, to the bit: neither cut nor narrowed, "
        "repaired or trained.",
    )
    floor: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="The share of its uploaded width (of weights and blocks: of its numbers) that stays of every layer. Where "
        "nothing is said, a fifth of every group of channels, or else a tenth, while the target can be met so; 2 % of weights.",
    )
    round_to: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    recovery: Recovery | Literal["none"] = Recovery()
    sparsity_training: SparsityTraining | None = None

    @property
    def is_refitted(self) -> bool:
        """Whether a refit follows the cut."""
        return self.recovery != "none" and self.recovery.refit

    @field_validator("block")
    @classmethod
    def _tiles_it(cls, block: list[int] | None, info: ValidationInfo) -> list[int] | None:
        is_tiled = info.data.get("structure", "channels") == "blocks"
        if block is not None and not is_tiled:
            raise PydanticCustomError("block_mismatch", "only the structure blocks has tiles")
        return [4, 4] if block is None and is_tiled else block

    @field_validator("criterion")
    @classmethod
    def _scores_it(cls, criterion: str, info: ValidationInfo) -> str:
        return scoring(criterion, _kind_of(info.data.get("structure", "channels")))

    @field_validator("scope")
    @classmethod
    def _ranks_it(cls, scope: str, info: ValidationInfo) -> str:
        structure = info.data.get("structure", "channels")
        if scope == "isomorphic" and structure != "channels":
            raise PydanticCustomError("scope_mismatch", "only channels have isomorphic groups")
        if scope == "layer" and structure == "layers":
            raise PydanticCustomError(
                "scope_mismatch", "of a whole layer there is no share; layers are ranked globally"
            )
        return scope

    @field_validator("allocation")
    @classmethod
    def _allocates_it(cls, allocation: str, info: ValidationInfo) -> str:
        if allocation == "sensitivity" and info.data.get("scope", "global") != "global":
            raise PydanticCustomError("scope_mismatch", "sensitivity decides between groups in the scope global only")
        if allocation == "sensitivity" and info.data.get("structure", "channels") != "channels":
            raise PydanticCustomError("scope_mismatch", "only channels are allocated by sensitivity")
        return allocation

    @field_validator("floor")
    @classmethod
    def _has_shares(cls, floor: float | None, info: ValidationInfo) -> float | None:
        structure = info.data.get("structure", "channels")
        if floor is not None and _kind_of(structure) in ("layers", "n:m"):
            raise PydanticCustomError("floor_mismatch", "only channels, weights and blocks have a floor")
        return floor

    @field_validator("iterations")
    @classmethod
    def _comes_in_parts(cls, iterations: int, info: ValidationInfo) -> int:
        if iterations > 1 and _kind_of(info.data.get("structure", "channels")) == "n:m":
            raise PydanticCustomError("schedule_mismatch", "n:m is reached in one cut")
        return iterations

    @field_validator("target")
    @classmethod
    def _counts_it(cls, target: PruneTargets | None, info: ValidationInfo) -> PruneTargets | None:
        """Of each structure only some figures are under control; n:m says how many zeros by itself."""
        structure = info.data.get("structure", "channels")
        if target is None:
            if _kind_of(structure) != "n:m":
                raise PydanticCustomError("missing", "is needed")
            return None
        if not target.given <= _CONTROLLED.get(structure, {"sparsity"}):
            raise PydanticCustomError(
                "target_mismatch",
                "channels have targets of macs, params, size and latency_ms; layers of macs and params; weights, blocks and "
                "n:m one of sparsity",
            )
        return target


#: The targets of structures that make a network smaller; the others make zeros.
_CONTROLLED = {
    "channels": {"macs", "params", "size", "latency_ms"},
    "layers": {"macs", "params"},
}


def _kind_of(structure: str) -> str:
    """The structure's name in the catalog."""
    return "n:m" if ":" in structure else structure


class Loss(SpecModel):
    """`hard * CE(y) + soft * kind(teacher)`; without labels `hard` is 0 (Hinton et al. 2015, arXiv 1503.02531)."""

    hard: float = Field(default=0.3, ge=0, le=1000)
    soft: float = Field(default=0.7, ge=0, le=1000)
    kind: Annotated[str, one_of("losses")] = "kl"
    temperature: float = Field(default=4.0, gt=0, le=1000)

    @model_validator(mode="after")
    def _some_weight(self) -> Loss:
        if self.hard + self.soft <= 0:
            raise PydanticCustomError("out_of_range", "hard and soft cannot both be 0")
        return self


class Optimizer(SpecModel):
    """The optimiser and its learning-rate schedule over the whole step."""

    name: Annotated[str, one_of("optimizers")] = "adamw"
    lr: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    schedule: Literal["cosine", "constant"] = "cosine"


class Training(SpecModel):
    """What every training step may be told."""

    epochs: int = Field(default=3, ge=1, le=10_000)
    batch_size: int = Field(default=128, ge=1, le=65_536)
    optimizer: Optimizer = Optimizer()
    normalisation: Literal["auto", "keep", "insert"] = "auto"


class Distill(Training):
    """Train the current network towards the original's outputs and, where there are labels, towards these."""

    teacher: Literal["original"] = "original"
    student: Literal["current"] = "current"
    loss: Loss = Loss()


class Finetune(Training):
    """Train the current network on the labels alone."""


class Step(SpecModel):
    """One step of the chain: exactly one of its keys."""

    prune: Prune | None = None
    distill: Distill | None = None
    finetune: Finetune | None = None
    sensitivity: Sensitivity | None = None

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: Any) -> Any:
        if isinstance(value, dict) and all(key in cls.model_fields for key in value):
            given = [key for key, options in value.items() if options is not None]
            if len(given) != 1:
                raise PydanticCustomError(
                    "invalid_step", "a step has exactly one key: prune, distill, finetune or sensitivity"
                )
        return value

    @property
    def kind(self) -> str:
        """The key that is set: `prune`, `distill`, `finetune` or `sensitivity`."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class Evaluation(SpecModel):
    """How figures are computed: over all held-out rows, or over a seeded sample of them."""

    max_samples: int | None = Field(default=None, ge=1)


class Limits(SpecModel):
    """Ceilings on what one attempt may use."""

    wall_seconds: int = Field(default=3600, ge=1, le=43_200)


def default_steps() -> list[Step]:
    """No spec at all: half of the MACs, with recovery."""
    return [Step.model_validate({"prune": {"target": {"macs": "50%"}}})]


class Spec(SpecModel):
    """A whole job: the steps, in order, and what they share."""

    version: Annotated[Literal[1], BeforeValidator(_a_whole_number)] = 1
    task: Literal["classification", "regression", "none"] | None = None
    inputs: list[SignatureRow] | None = Field(default=None, min_length=1, max_length=64)
    preprocess: Preprocess | dict[str, Preprocess] | None = Field(default=None, union_mode="left_to_right")
    steps: list[Step] = Field(default_factory=default_steps, min_length=1, max_length=MAX_STEPS)
    evaluation: Evaluation = Evaluation()
    limits: Limits = Limits()
    outputs: list[Literal["onnx", "torchscript", "exported_program"]] | None = Field(
        default=None, min_length=1, max_length=3
    )
    fold_batchnorm: bool = Field(
        default=False, description="On the way out, BatchNormalization goes into the layer before it where it can."
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1)

    @model_validator(mode="after")
    def _outputs_once(self) -> Spec:
        if self.outputs and len(set(self.outputs)) != len(self.outputs):
            raise PydanticCustomError("duplicate_output", "an output format is listed once")
        return self

    @property
    def tensors(self) -> list[InputSignature]:
        """The rows of `inputs` that are tensors: the network's inputs, in order."""
        return [row for row in self.inputs or [] if isinstance(row, InputSignature)]

    @property
    def makes_network(self) -> bool:
        """Whether any step changes the network; else the result of a job is what it found out."""
        return any(step.sensitivity is None for step in self.steps)

    def preprocess_of(self, name: str) -> Preprocess | None:
        """The preprocessing of one input."""
        return self.preprocess.get(name) if isinstance(self.preprocess, dict) else self.preprocess

    def as_asked(self) -> dict[str, Any]:
        """Only what was asked for, so that reading it again tells a wish from a default."""
        return self.model_dump(mode="json", exclude_unset=True)

    def as_json(self) -> dict[str, Any]:
        """The spec with its defaults, without the keys of a step that are not set."""
        spec = self.model_dump(mode="json")
        spec["steps"] = [{step.kind: plain[step.kind]} for step, plain in zip(self.steps, spec["steps"], strict=True)]
        return spec
