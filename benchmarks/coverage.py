"""The coverage table: `python benchmarks/coverage.py FOLDER… --rows CACHE [--only GLOB] [--again] [--write docs/coverage.md]`.

Takes every network under the folders (they are not part of this repository) through import, comparison with its own runtime,
training, analysis, random cuts with their proof, and all exports. Each network runs in a process of its own with a time
limit; what was found is kept in CACHE, so that the table can be made in parts. A row turns red, never the script.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.corpus_inputs import inputs_of

KINDS = (".script", ".trace", ".frozen", ".half", ".dynamo")
ENDINGS = (".onnx", ".pt", ".jit", ".pt2")
PARITY, HALF_PARITY, PROOF, NARROWEST, UNITS = 1e-3, 3e-2, 1e-4, 0.1, 1 / 16
RED = "**✗**"
HEAD = (
    "network", "form", "imports", "parity before", "trains", "MACs left", "units", "proof 30 %", "proof 60 %", "control",
    "parity after", "TorchScript", ".pt2",
)  # fmt: skip
TEXT = """# Coverage

One row for each network and form, made by `benchmarks/coverage.py` from a folder of networks that are not part of this repository.

- **imports**: seconds from the file to its description, or the code with which it is refused at upload (below, with the reason).
- **parity before**: largest difference to onnxruntime (ONNX) or to the module itself, relative to the largest output (to 1 where
  a Sigmoid or Softmax writes it: onnxruntime rounds those as numbers about 1, however small they are).
- **trains**: loss on random targets, first step → best of the last three of {steps} with Adam, in the training view.
- **MACs left**: of the MACs in layers that write no model output, what is left when every group keeps one unit per block.
- **units**: units that can be decided on by themselves, per channel, in the layer that has the fewest.
- **proof**: 30 % and 60 % random units of every exact group removed, the cut network against the masked original: at every
  consumer in the engine / the outputs of the two written files in onnxruntime. **control** is the cut network against the
  unmasked original: it must differ.
- **parity after**: half of every group removed at random, inexact groups included; the written ONNX in onnxruntime against our
  evaluation. **TorchScript** and **.pt2**: the same network in these forms, loaded again.

A cell is red ({red}) above {parity:g} (half precision {half:g}) for parity, {proof:g} for the proof, {narrowest:g} for MACs left,
below 1/16 for units, and where a stage failed.
"""


def files_under(folders: list[Path]) -> list[tuple[str, Path]]:
    """(name, file) of every network, the name relative to the folder's parent."""
    found = []
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix in ENDINGS and file.is_file():
                found.append((str(file.relative_to(folder.parent)), file))  # noqa: PERF401
    return found


def measure(name: str, file: Path, row: Path, seconds: int) -> None:
    """Run one network in its process; a time limit or a crash is written into the row."""
    command = [sys.executable, str(Path(__file__).parent / "network_row.py"), str(file), str(row)]
    command += ["--inputs", json.dumps(inputs_of(file))]
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"}
    try:
        ended = subprocess.run(command, timeout=seconds, env=env, capture_output=True, text=True, check=False)
        trouble = "" if ended.returncode == 0 else f"ended with {ended.returncode}: {ended.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        trouble = f"not finished after {seconds} s"
    facts = json.loads(row.read_text()) if row.exists() and row.stat().st_size else {"errors": {}, "seconds": {}}
    facts["name"], facts["size_bytes"] = name, file.stat().st_size
    if trouble:
        facts["errors"][facts.pop("stage", "start")] = {"code": "trouble", "detail": trouble}
    row.write_text(json.dumps(facts, indent=1))


def render(rows: list[dict[str, Any]]) -> str:
    """The table, and below it the reason of everything that is red or refused."""
    text = TEXT.format(
        steps=16, red=RED, parity=PARITY, half=HALF_PARITY, proof=PROOF, narrowest=NARROWEST
    ).splitlines()
    cells = [table_row(row) for row in rows]
    red = sum(any(cell.startswith(RED) for cell in row) for row in cells)
    refused = sum("import" in row["errors"] for row in rows)
    text += [
        "",
        f"{len(rows)} rows: {len(rows) - red - refused} green, {refused} refused at upload, {red} with a red cell.",
        "",
    ]
    text += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    text += ["| " + " | ".join(row) + " |" for row in cells]
    text += ["", "## Reasons", ""]
    for row in rows:
        for stage, error in row["errors"].items():
            text.append(f"- `{row['name']}` {stage}: `{error['code']}` {_line(error['detail'])}")
        if row.get("unproven"):
            text.append(f"- `{row['name']}` proof: {row['unproven']}")
        for layer, share, why in row.get("stays", []) if (row.get("narrowest") or 0) > NARROWEST else []:
            text.append(
                f"- `{row['name']}` `{layer}` keeps {share:.0%} of the MACs: {_line(why or 'only part of it can be cut')}"
            )
        if row.get("units") is not None and row["units"] < UNITS:
            text.append(f"- `{row['name']}` `{row['units_layer']}` has {row['units']:.3f} units per channel")
    return "\n".join(text) + "\n"


def table_row(row: dict[str, Any]) -> list[str]:
    """The cells of one network, red where a limit is missed or a stage failed."""
    errors, half = row["errors"], ".half" in row["name"]
    limit = HALF_PARITY if half else PARITY
    cells = list(_name_and_form(row["name"]))
    if "import" in errors:
        code = errors["import"]["code"]
        refused = code[0].islower() and code != "trouble"
        return [*cells, f"refused: `{code}`" if refused else f"{RED} {code}", *[""] * (len(HEAD) - 3)]
    cells.append(f"{row['seconds']['import']:.1f} s" if "import" in row["seconds"] else RED)
    cells.append(_figure(row, "before", "parity_before", limit))
    cells.append(_trains(row))
    cells.append(_cell(row, "analyse", "narrowest", "{:.1%}", lambda share: share <= NARROWEST))
    cells.append(_cell(row, "analyse", "units", "{:.2f}", lambda units: units >= UNITS))
    cells += _proofs(row, HALF_PARITY if half else PROOF)
    cells.append(_figure(row, "after", "parity_after", limit))
    cells.append(_figure(row, "torchscript", "torchscript", limit))
    cells.append(_figure(row, "program", "program", limit))
    return cells


def _name_and_form(name: str) -> tuple[str, str]:
    """`zoo/resnet18.dynamo.onnx` is the network zoo/resnet18 in the form dynamo.onnx."""
    path = Path(name)
    form = path.suffix
    if Path(path.stem).suffix in KINDS:
        form = Path(path.stem).suffix + form
    return f"{path.parent.name}/{path.name.removesuffix(form)}", form.removeprefix(".")


def _figure(row: dict[str, Any], stage: str, key: str, limit: float) -> str:
    return _cell(row, stage, key, "{:.0e}", lambda error: error <= limit)


def _cell(row: dict[str, Any], stage: str, key: str, form: str, good: Any) -> str:
    if stage in row["errors"] or key not in row:
        return f"{RED} {row['errors'][stage]['code']}" if stage in row["errors"] else RED
    if row[key] is None:
        return "–"
    text = form.format(row[key])
    return text if good(row[key]) else f"{RED} {text}"


def _trains(row: dict[str, Any]) -> str:
    if "loss" not in row:
        return _cell(row, "train", "loss", "", None)
    first, last = row["loss"]
    text = f"{first:.2f} → {last:.2f}" + (f", {row['no_gradient']} without gradient" if row["no_gradient"] else "")
    text += "" if row["free_batch"] else ", one sample"
    return text if last < first and not row["no_gradient"] else f"{RED} {text}"


def _proofs(row: dict[str, Any], limit: float) -> list[str]:
    if "proof" not in row:
        return [_cell(row, "proof", "proof", "", None), "", ""]
    found = row["proof"]
    if not found:
        return ["–", "–", "–"]
    cells = []
    for proof in found.values():
        text = f"{proof['error']:.0e} / {proof['onnxruntime']:.0e}"
        cells.append(text if max(proof["error"], proof["onnxruntime"]) <= limit else f"{RED} {text}")
    control = min(proof["control"] for proof in found.values())
    vacuous = any(proof["vacuous"] for proof in found.values())
    return [*cells, f"{RED} {control:.0e}" if vacuous else f"{control:.0e}"]


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:420]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--only", default="*")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--seconds", type=int, default=420)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    arguments.rows.mkdir(parents=True, exist_ok=True)
    for folder in [folder for folder in arguments.folders if not folder.is_dir()]:
        print(f"skipped: there is no folder {folder}")
    found = files_under([folder for folder in arguments.folders if folder.is_dir()])
    rows: list[dict[str, Any]] = []
    for name, file in found:
        row = arguments.rows / f"{name.replace('/', '__')}.json"
        if fnmatch.fnmatch(name, arguments.only) and (arguments.again or not row.exists()):
            measure(name, file, row, arguments.seconds)
            facts = json.loads(row.read_text())
            print(
                " | ".join(table_row(facts)),
                *[f"\n    {k}: {_line(v['detail'])}" for k, v in facts["errors"].items()],
                flush=True,
            )
        if row.exists():
            rows.append(json.loads(row.read_text()))
        else:
            print(f"skipped: {name} has not been measured")
    if arguments.write is not None:
        arguments.write.write_text(render(rows))


if __name__ == "__main__":
    main()
