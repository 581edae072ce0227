"""The engine beside its peers: `python benchmarks/dependency_peers.py [FOLDER…] --rows CACHE [--only GLOB] [--again] [--write]`.

Compares groups, cuts and results with Torch-Pruning on networks of torchvision, and with onnxsim's structured pruning on their
ONNX files and those under the folders, which are not part of this repository. It runs in an environment of its own
(`requirements-peers.txt`): neither the project nor its tests need the peers. Each network is measured in a process with a
time limit; what was found is kept in CACHE, so that docs/comparison.md can be made in parts.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peer_networks import NETWORKS

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
TOLERANCE = 1e-4
ROUNDING = 1e-6
SECONDS = 120
WRONG = "**✗**"
UNFINISHED = "not finished in time"
TEXT = """# Beside its peers

Written by `python benchmarks/dependency_peers.py --write`; benchmarks/README.md says how to repeat it.

## Torch-Pruning 1.6.1

Architectures of torchvision with random weights. Torch-Pruning gets the live module; the engine gets the ONNX file that
`torch.onnx.export` makes of it, with every parameter under its own name. Torch-Pruning needs the code of a network: TorchScript
files, `.pt2` and ONNX are not taken by it, so the comparison is on networks that have code.

- **groups**: sets of channels that are decided on together. **identical**: the same positions of the same parameters (weights,
  biases, normalisations), and the same of them go together.
- **MACs left**: every group cut to one channel (one for each group of a grouped convolution), counted by the same rules.
- **30 %**: random channels removed, the difference between the cut network and the whole one whose removed channels are set to
  zero, relative to the spread of the outputs. Groups with a LayerNorm over the cut channels are left out, for both: there the cut
  network is another one. {wrong} above {tolerance:g}, and where the whole network as it is would be as near.
"""
ONNX_TEXT = """
## onnxsim 0.8.1

`onnxsim.apply_structured_pruning` takes ONNX files, and needs no code either. Both are asked for 30 % of the channels: of each
chain that onnxsim finds, by the size of the weights; of each exact group here, at random. The same networks as exporters write them
(BatchNorm folded), and real files. onnxsim does not say which channels it removed: they are read off the weights that are left.

- **left**: of the parameters (float constants) and of the MACs. **untouched**: the file comes back as it was.
- **error**: the cut file against the whole one whose removed channels are set to zero, relative to the spread of each output:
  here by the engine's own proof, there in onnxruntime. {wrong} above {tolerance:g}.
"""
ONNX_HEAD = ("file", "parameters left here", "there", "MACs left here", "there", "error here", "there")
HEAD = ("network", "groups here", "there", "identical", "MACs left here", "there", "30 % here", "there")
#: Why groups differ, found by reading both; which ones they are is printed below the table.
REASONS = {
    "shufflenet_v2_x1_0": "the channel shuffle (reshape to two groups, transpose, reshape) is not followed by Torch-Pruning: it "
    "divides the channels by more channels and ends before there is a group.",
    "vision_transformer": "for Torch-Pruning an `nn.MultiheadAttention` is one layer that is as wide inside as outside, so its "
    "heads go with the residual stream; here the inside of each attention is a group of its own, and the residual stream another. "
    "Its narrowest network does not run because `VisionTransformer.forward` keeps the width in `hidden_dim`, which stays.",
    "swin_t": f"the attention is a function over unwrapped parameters and windows, in which Torch-Pruning's search for one group "
    f"is not finished after {SECONDS} s of processor time.",
}


def measure(script: str, subject: str, row: Path, seconds: int) -> dict[str, Any]:
    """Run one row in its process; a crash is its finding, and so is that it needs more processor time than this."""
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"}
    env["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(Path(__file__).with_name(script)), subject, str(row)]
    row.unlink(missing_ok=True)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # time on the wall means little on a shared machine

    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, preexec_fn=limit)
    if not row.exists():
        row.write_text(json.dumps({"trouble": f"ended with {ended.returncode}: {ended.stderr.strip()[-300:]}"}))
    found: dict[str, Any] = json.loads(row.read_text())
    return found


def network_cells(name: str, row: dict[str, Any]) -> list[str]:
    """One network of the first table."""
    if "trouble" in row:
        return [name, f"{WRONG} {row['trouble'].splitlines()[-1]}", *[""] * (len(HEAD) - 2)]
    ours, theirs = row["ours"], row["theirs"]
    identical = str(row["same"]) if "same" in row else ""
    if identical and not row["only_ours"] and not row["only_theirs"]:
        identical = "all"
    return [
        name,
        str(ours["groups"]),
        _failed_or(theirs, "groups", "{}"),
        identical,
        f"{ours['least']:.2%}",
        _failed_or(theirs, "least", "{:.2%}"),
        _difference(ours),
        _failed_or(theirs, "error", "") or _difference(theirs),
    ]


def differences(name: str, row: dict[str, Any]) -> list[str]:
    """What is not identical, with the reason."""
    lines = []
    for side, whom in (("only_ours", "here"), ("only_theirs", "there")):
        for group in row.get(side, []):
            names = group["parameters"]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  - only {whom}: {group['units']} units in {', '.join(f'`{n}`' for n in names[:3])}{more}")
    failed = {text for key, text in row.get("theirs", {}).items() if key.endswith("_failed") and text != UNFINISHED}
    lines += [f"  - Torch-Pruning ends with `{text}`" for text in sorted(failed)]
    explained = lines or "groups_failed" in row.get("theirs", {})
    return [f"- `{name}`: {REASONS.get(name, 'not explained yet')}", *lines] if explained else []


def file_cells(name: str, row: dict[str, Any]) -> list[str]:
    """One file of the second table."""
    if "trouble" in row:
        return [name, f"{WRONG} {row['trouble'].splitlines()[-1]}", *[""] * (len(ONNX_HEAD) - 2)]
    ours, theirs = row["ours"], row["theirs"]
    cells = [name]
    for key in ("params_left", "macs_left"):
        cells.append(_failed_or(ours, "cut", f"{ours.get(key, 0):.0%}"))
        if theirs.get("params_left") == 1:
            cells.append("untouched")
        elif key == "macs_left":
            known = "macs" in theirs and "macs" in ours
            cells.append(f"{theirs['macs'] / ours['macs']:.0%}" if known else "–")
        else:
            cells.append(_failed_or(theirs, "cut", f"{theirs.get(key, 0):.0%}"))
    cells.append(_difference(ours) if "error" in ours else "")
    if "runs_failed" in theirs:
        return [*cells, f"{WRONG} does not run"]
    unknown = "runs, not known" if "outputs" in theirs else ""
    return [*cells, _difference(theirs) if "error" in theirs else unknown]


def file_failures(name: str, row: dict[str, Any]) -> list[str]:
    """What either of the two says where it does not take a file."""
    return [
        f"- `{name}` {whom}, {key}: `{row[side][f'{key}_failed']}`"
        for whom, side in (("here", "ours"), ("there", "theirs"))
        for key in ("cut", "runs", "counted")
        if f"{key}_failed" in row.get(side, {})
    ]


def render(rows: dict[str, dict[str, Any]], files: dict[str, dict[str, Any]]) -> str:
    """The page."""
    text = [
        TEXT.format(wrong=WRONG, tolerance=TOLERANCE),
        *_table(HEAD, [network_cells(*item) for item in rows.items()]),
    ]
    compared = [row for row in rows.values() if "same" in row]
    equal = [row for row in compared if not row["only_ours"] and not row["only_theirs"]]
    text += ["", f"All groups are identical in {len(equal)} of the {len(compared)} networks that both take."]
    found = [line for item in rows.items() for line in differences(*item)]
    text += ["", "Not identical:", "", *found] if found else []
    if files:
        text += [ONNX_TEXT.format(wrong=WRONG, tolerance=TOLERANCE)]
        text += _table(ONNX_HEAD, [file_cells(*item) for item in files.items()])
        sides = {side: [row[side] for row in files.values() if side in row] for side in ("ours", "theirs")}
        cut = {side: [found for found in rows if found.get("params_left", 1) < 1] for side, rows in sides.items()}
        right = {side: sum(_is_right(found) for found in rows) for side, rows in cut.items()}
        text += [
            "",
            f"Of {len(files)} files {len(cut['ours'])} are cut here, {right['ours']} of them shown to be right; "
            f"{len(cut['theirs'])} there, {right['theirs']} of them shown to be right.",
            "",
            *(line for item in files.items() for line in file_failures(*item)),
        ]
    return "\n".join(text).rstrip() + "\n"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _failed_or(found: dict[str, Any], key: str, form: str) -> str:
    failure = found.get(f"{key}_failed")
    if failure is None:
        return form.format(found.get(key))
    return "not finished" if failure == UNFINISHED else f"{WRONG} raises"


def _difference(found: dict[str, Any]) -> str:
    if found["error"] > TOLERANCE:
        return f"{WRONG} {found['error']:.0e}"
    return f"{found['error']:.0e}" if _is_right(found) else f"{WRONG} tells nothing"


def _is_right(found: dict[str, Any]) -> bool:
    """Whether a result is what it should be, and clearly not what the whole network computes."""
    error, control = found.get("error", float("inf")), found.get("control", 0.0)
    return error <= TOLERANCE and control > 100 * max(error, ROUNDING)


def gather(
    script: str, subjects: dict[str, str], arguments: argparse.Namespace, cells: Any
) -> dict[str, dict[str, Any]]:
    """The rows of these subjects, by name: those kept in CACHE, and those measured now."""
    rows = {}
    for name, subject in subjects.items():
        row = arguments.rows / f"{Path(script).stem}__{name.replace('/', '__')}.json"
        if fnmatch.fnmatch(name, arguments.only) and (arguments.again or not row.exists()):
            print(" | ".join(cells(name, measure(script, subject, row, arguments.seconds))), flush=True)
        if row.exists():
            rows[name] = json.loads(row.read_text())
        else:
            print(f"skipped: {name} has not been measured")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="*", help="ONNX files for onnxsim")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--only", default="*")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of processor time, for each row")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} from the rows")
    arguments = parser.parse_args()
    arguments.rows.mkdir(parents=True, exist_ok=True)
    names = {name: name for name in NETWORKS}
    found = [file for folder in arguments.folders for file in sorted(folder.rglob("*.onnx"))]
    rows = gather("torch_pruning_row.py", names, arguments, network_cells)
    files = gather(
        "onnxsim_row.py", names | {f"{f.parent.name}/{f.stem}": str(f) for f in found}, arguments, file_cells
    )
    if arguments.write:
        PAGE.write_text(render(rows, files))


if __name__ == "__main__":
    main()
