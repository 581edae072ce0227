"""What a spec asks for against what there is: the model's signature and the arrays of the data set.

Everything that can be known before a worker is used is answered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.errors import FieldError, Unprocessable
from app.spec.catalog import needs_of
from app.spec.fields import FieldsMismatch, Roles, assign_roles, base_names, split_name
from app.spec.reading import field_errors
from app.spec.schema import Spec

#: The task whose labels a metric is about.
_TASKS = {"accuracy": "classification", "rmse": "regression"}


@dataclass(frozen=True)
class ModelFacts:
    """What inspection found: `inputs` is None for a TorchScript file that came without a signature."""

    format: str
    inputs: list[dict[str, Any]] | None


@dataclass(frozen=True)
class DatasetFacts:
    """The arrays of a data set: `[{name, dtype, shape}]`."""

    fields: list[dict[str, Any]]


def complete_spec(spec: Spec, model: ModelFacts, dataset: DatasetFacts | None) -> Spec:
    """The spec with its data-dependent defaults filled in: task, inputs, outputs, criteria, and no hard loss without labels.

    Raises `Unprocessable` (`data_needed`, `labels_needed`, `signature_needed`, `data_mismatch`), pointing at the field.
    """
    errors = [] if dataset else _asks_for_data(spec)
    if errors:
        raise Unprocessable.of(errors, hint="send a data set: an .npz or .safetensors file with the inputs as `x`")
    signature = _signature(spec, model, dataset)
    tensors = [entry for entry in signature if "value" not in entry]
    _check_batches(spec, tensors)
    labels = _check_data(tensors, dataset) if dataset else None
    if labels is None and (errors := _asks_for_labels(spec)):
        raise Unprocessable.of(errors, hint="add an array `y` of labels to the data set")
    plain = spec.as_json()
    if labels is None:
        for step in plain["steps"]:
            if "distill" in step:
                step["distill"]["loss"] |= {"hard": 0.0}
                step["distill"]["loss"]["soft"] = step["distill"]["loss"]["soft"] or 1.0
    if dataset is not None:
        _choose_criteria(spec, plain)
    plain["inputs"] = signature
    plain["task"] = spec.task or _task_of(labels)
    _check_metrics(spec, plain["task"])
    plain["outputs"] = plain["outputs"] or [model.format]
    try:
        return Spec.model_validate(plain)
    except ValidationError as error:  # what a file says of its inputs can be stranger than a spec may be
        raise Unprocessable.of(field_errors(error, plain, Spec, "/spec")) from None


def _choose_criteria(spec: Spec, plain: dict[str, Any]) -> None:
    """Where there is data and the spec names no criterion, channels go by what is lost with them."""
    for step, written in zip(spec.steps, plain["steps"], strict=True):
        options = step.prune if step.prune and step.prune.structure == "channels" else step.sensitivity
        if options and "criterion" not in options.model_fields_set:
            written[step.kind]["criterion"] = "reconstruction"


def _asks_for_data(spec: Spec) -> list[FieldError]:
    errors = []
    for i, step in enumerate(spec.steps):
        if step.kind in ("distill", "finetune", "sensitivity"):
            errors.append(FieldError(f"/spec/steps/{i}/{step.kind}", "data_needed", f"{step.kind} needs a data set"))
        elif step.prune and "data" in needs_of("criteria", step.prune.criterion):
            detail = f"the criterion {step.prune.criterion} looks at samples"
            errors.append(FieldError(f"/spec/steps/{i}/prune/criterion", "data_needed", detail))
        elif step.prune and step.prune.allocation == "sensitivity":
            detail = "allocation by sensitivity looks at samples"
            errors.append(FieldError(f"/spec/steps/{i}/prune/allocation", "data_needed", detail))
        elif step.prune and step.prune.sparsity_training:
            detail = "sparsity training needs a data set"
            errors.append(FieldError(f"/spec/steps/{i}/prune/sparsity_training", "data_needed", detail))
        elif step.prune and step.prune.iterations > 1 and "epochs_between" in step.prune.model_fields_set:
            detail = "training between cuts needs a data set"
            errors.append(FieldError(f"/spec/steps/{i}/prune/epochs_between", "data_needed", detail))
        elif step.prune and "recovery" in step.prune.model_fields_set and step.prune.recovery != "none":
            errors.append(
                FieldError(f"/spec/steps/{i}/prune/recovery", "data_needed", "recovery needs samples to run on")
            )
    return errors


def _asks_for_labels(spec: Spec) -> list[FieldError]:
    errors = []
    for i, step in enumerate(spec.steps):
        if step.finetune:
            errors.append(
                FieldError(
                    f"/spec/steps/{i}/finetune", "labels_needed", "finetune trains on labels, and the data set has none"
                )
            )
        elif step.distill and "hard" in step.distill.loss.model_fields_set and step.distill.loss.hard > 0:
            errors.append(
                FieldError(
                    f"/spec/steps/{i}/distill/loss/hard",
                    "labels_needed",
                    "a hard loss needs labels, and the data set has none",
                )
            )
        elif step.sensitivity and (metric := step.sensitivity.metric) and "labels" in needs_of("metrics", metric):
            detail = f"{metric} needs labels, and the data set has none"
            errors.append(FieldError(f"/spec/steps/{i}/sensitivity/metric", "labels_needed", detail))
    return errors


def _check_metrics(spec: Spec, task: str) -> None:
    errors = [
        FieldError(
            f"/spec/steps/{i}/sensitivity/metric", "metric_mismatch", f"{metric} is no figure of the task {task}"
        )
        for i, step in enumerate(spec.steps)
        if step.sensitivity and (metric := step.sensitivity.metric) in _TASKS and _TASKS[metric] != task
    ]
    if errors:
        raise Unprocessable.of(errors, hint="leave `metric` out: the default is the task's own")


def _check_batches(spec: Spec, tensors: list[dict[str, Any]]) -> None:
    """A latency cannot be asked for at a number of rows that the network does not take."""
    sizes = {entry["shape"][0] for entry in tensors if entry["shape"] and isinstance(entry["shape"][0], int)}
    errors = [
        FieldError(
            f"/spec/steps/{i}/prune/target/latency_ms",
            "batch_mismatch",
            f"the network takes {min(sizes)} rows at once, not {asked.batch}",
        )
        for i, step in enumerate(spec.steps)
        if step.prune and step.prune.target and (asked := step.prune.target.latency_ms) and asked.batch
        if sizes and asked.batch not in sizes
    ]
    if errors:
        raise Unprocessable.of(errors, hint="leave `batch` out: the default is what the network takes")


def _signature(spec: Spec, model: ModelFacts, dataset: DatasetFacts | None) -> list[dict[str, Any]]:
    if model.inputs is not None:
        return model.inputs
    if spec.inputs is not None:
        return [entry.model_dump(mode="json") for entry in spec.inputs]
    if dataset is None:
        raise Unprocessable(
            "a TorchScript file does not say what its inputs are, and there is no data set to take them from",
            code="signature_needed",
            errors=(FieldError("/spec/inputs", "signature_needed", "name, dtype and shape of each input"),),
            hint='give `inputs`, for example [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}], or a data set',
        )
    signature = []
    for name in base_names([f["name"] for f in dataset.fields]):
        stored = next(f for f in dataset.fields if split_name(f["name"])[0] == name)
        dtype = "float32" if spec.preprocess_of(name) else stored["dtype"]
        signature.append({"name": name, "dtype": dtype, "shape": ["batch", *stored["shape"][1:]]})
    return signature


def _check_data(signature: list[dict[str, Any]], dataset: DatasetFacts) -> dict[str, Any] | None:
    """The field of the labels, or None; raises where the arrays do not fit the signature."""
    by_name = {field["name"]: field for field in dataset.fields}
    try:
        roles = assign_roles(list(by_name), [entry["name"] for entry in signature])
    except FieldsMismatch as error:
        raise _mismatch(str(error)) from None
    for entry in signature:
        for name in roles.inputs[entry["name"]].values():
            _check_shape(entry, by_name[name])
    _check_lengths(roles, by_name)
    return next((by_name[name] for name in roles.labels.values()), None)


def _check_shape(entry: dict[str, Any], field: dict[str, Any]) -> None:
    wanted, found = entry["shape"], field["shape"]
    sizes_fit = len(wanted) == len(found) and all(
        not isinstance(a, int) or a == b for a, b in zip(wanted[1:], found[1:], strict=True)
    )
    if not sizes_fit:
        raise _mismatch(f"the input {entry['name']!r} has shape {wanted}, the array {field['name']!r} {found}")


def _check_lengths(roles: Roles, by_name: dict[str, dict[str, Any]]) -> None:
    for split in roles.splits:
        names = [arrays[split] for arrays in (*roles.inputs.values(), roles.labels) if split in arrays]
        lengths = {name: by_name[name]["shape"][0] for name in names if by_name[name]["shape"]}
        if len(set(lengths.values())) > 1:
            raise _mismatch(f"arrays of one split have different lengths: {lengths}")


def _mismatch(detail: str) -> Unprocessable:
    return Unprocessable(
        detail,
        code="data_mismatch",
        errors=(FieldError("/dataset", "data_mismatch", detail),),
        hint="name the arrays like the inputs of the network (or `x`), one row per sample, in the shapes that it takes",
    )


def _task_of(labels: dict[str, Any] | None) -> str:
    if labels is None:
        return "none"
    is_integer = labels["dtype"].startswith(("int", "uint"))
    return "classification" if is_integer and len(labels["shape"]) == 1 else "regression"
