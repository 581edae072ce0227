"""`python -m worker.compressor.catalog`: write `app/spec/catalog.json` from the registries; `--check` compares.

The API refuses unknown names by that file, without loading what is loaded here.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from app.spec.inputs import Preprocess
from app.spec.schema import PruneTargets
from worker.compressor.distillation.losses import LOSSES
from worker.compressor.distillation.optimizers import OPTIMIZERS
from worker.compressor.distillation.students import STUDENTS
from worker.compressor.evaluation.metrics import METRICS
from worker.compressor.plugins import Described
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.penalties import PENALTIES
from worker.compressor.pruning.structures import STRUCTURES
from worker.compressor.registry import Registry

_REGISTRIES: dict[str, Registry[Any]] = {
    "criteria": CRITERIA,
    "structures": STRUCTURES,
    "penalties": PENALTIES,
    "losses": LOSSES,
    "students": STUDENTS,
    "optimizers": OPTIMIZERS,
}
_TARGET_HELP = {
    "macs": "multiply-accumulates for one sample, as a share of the original's or as a count; never more is kept",
    "params": "parameters, as a share of the original's or as a count; never more is kept",
    "size": "bytes of the file in the uploaded format, as a share of the upload's or as a count; never more",
    "latency_ms": "shortest forward pass in onnxruntime on the worker, at batch 1 or as `{value, batch}` says, as a share of the "
    "original's in the same run or in milliseconds; measured, and met within 5 %",
    "sparsity": "the share of parameters that are 0 in the end, at least; of the structures `weights`, `blocks` and `n:m`",
}


def build() -> dict[str, list[dict[str, Any]]]:
    """The catalog: for each kind its entries `{name, help, needs, options}`, options as JSON Schema."""
    catalog = {kind: [_entry(registry.get(name)) for name in registry] for kind, registry in _REGISTRIES.items()}
    for entry in catalog["criteria"]:
        entry["structures"] = list(CRITERIA.get(entry["name"]).structures)
    schema = PruneTargets.model_json_schema()["properties"]
    catalog["metrics"] = [_entry(metric) for metric in METRICS]
    catalog["targets"] = [
        {"name": name, "help": text, "needs": [], "options": schema[name]} for name, text in _TARGET_HELP.items()
    ]
    affine = {
        "name": "affine",
        "help": "(float32(x) * scale - mean) / std on the channel axis of the layout",
        "needs": ["data"],
    }
    catalog["preprocessing"] = [{**affine, "options": Preprocess.model_json_schema()}]
    return catalog


def render() -> str:
    """The file's text."""
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` say whether it is up to date (exit status 1 where not)."""
    path = Path(str(resources.files("app.spec").joinpath("catalog.json")))
    if "--check" in arguments:
        return 0 if path.read_text() == render() else 1
    path.write_text(render())
    return 0


def _entry(plugin: type[Described]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "help": plugin.help,
        "needs": plugin.needs,
        "options": plugin.Options.model_json_schema(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
