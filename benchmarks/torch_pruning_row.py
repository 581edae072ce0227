"""One network through Torch-Pruning and the engine: `python benchmarks/torch_pruning_row.py NETWORK ROW.json`.

`dependency_peers.py` starts it, in a process for each network. Torch-Pruning gets the live module, the engine the ONNX
file that the exporter makes of it. Both remove channels at random; what is left is compared with the whole network whose
removed channels are set to zero.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.couplings import Coupling, compare, couplings, parameters_of
from benchmarks.peer_networks import build, export, head_of
from benchmarks.removed import REMOVED, random_kept
from worker.compressor.graph.channels.analysis import Analysis, analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Network
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

#: What is touched, as (parameter, axis, shift), and the positions.
Steps = list[tuple[list[tuple[str, int, int]], list[int]]]
_NORMALISES = (nn.LayerNorm, nn.GroupNorm)


class Peer:
    """Torch-Pruning on one module, with a record of what it removed in terms of the original."""

    def __init__(self, net: nn.Module, picture: Tensor) -> None:
        self.original, self.net, self.picture = net, copy.deepcopy(net), picture
        self.names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        self.left: dict[tuple[str, int], np.ndarray] = {}

    def groups(self) -> list[Coupling]:
        """Every group of the dependency graph, but that of the layer that writes the output."""
        graph = tp.DependencyGraph().build_dependency(self.net, self.picture, verbose=False)
        found = []
        for group in graph.get_all_groups(ignored_layers=[head_of(self.net)]):
            coupling: Coupling = {}
            for item in group.items:
                for name, axis, shift in self._touched(graph, item.dep):
                    coupling |= {(name, axis, i + shift): u for i, u in zip(item.idxs, item.root_idxs, strict=True)}
            found.append(coupling)
        return found

    def prune(self, share: float | None) -> None:
        """Remove this share of every group at random; None: all but one channel, or one for each group of a convolution."""
        pruner = self._pruner({})
        rates = {}
        for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
            root = group[0].dep.target.module
            size = pruner.DG.get_out_channels(root) // pruner._get_channel_groups(group)
            rates[root] = share if share is not None else 1 - 1.5 / size  # it keeps int(size × (1 - rate))
        pruner = self._pruner({root: rate for root, rate in rates.items() if rate > 0})
        for group in pruner.step(interactive=True):
            if share is not None and any(isinstance(dep.target.module, _NORMALISES) for dep, _ in group):
                continue  # what a normalisation computes over fewer channels is another network, in theory as well
            steps = [(list(self._touched(pruner.DG, dep)), idxs) for dep, idxs in group]
            group.prune()
            self._forget(steps)
            self.names = {id(parameter): name for name, parameter in self.net.named_parameters()}

    def _pruner(self, rates: dict[nn.Module, float]) -> Any:
        heads = {m: m.num_heads for m in self.net.modules() if isinstance(m, nn.MultiheadAttention)}
        return tp.pruner.BasePruner(
            self.net,
            self.picture,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=0.0,
            pruning_ratio_dict=rates,
            ignored_layers=[head_of(self.net)],
            in_channel_groups=dict(heads),
            out_channel_groups=dict(heads),
        )

    def masked(self) -> nn.Module:
        """The original with everything removed set to zero."""
        masked = copy.deepcopy(self.original)
        parameters = dict(masked.named_parameters())
        grouped = {f"{name}.weight": m.groups for name, m in masked.named_modules() if isinstance(m, nn.Conv2d)}
        with torch.no_grad():
            for (name, axis), left in self.left.items():
                weight, groups = parameters[name], grouped.get(name, 1)
                gone = np.setdiff1d(np.arange(_length(weight, axis, groups)), left)
                for part in range(groups if axis == 1 else 1):
                    rows = weight.chunk(groups)[part] if axis == 1 else weight
                    here = gone - part * weight.shape[axis]
                    here = here[(here >= 0) & (here < weight.shape[axis])]
                    rows.index_fill_(axis, torch.from_numpy(here), 0.0)
        return masked

    def _touched(self, graph: Any, dep: Any) -> Iterator[tuple[str, int, int]]:
        """(parameter, axis, shift of the positions) that a step of a group removes something of."""
        module, outward = dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)
        if isinstance(module, nn.Parameter):
            yield self.names[id(module)], dep.target.pruning_dim % module.dim(), 0
        elif isinstance(module, nn.MultiheadAttention):
            width = module.embed_dim
            for part in range(3):
                yield self.names[id(module.in_proj_weight)], 0, part * width
                yield self.names[id(module.in_proj_bias)], 0, part * width
            yield self.names[id(module.in_proj_weight)], 1, 0
            for axis in (0, 1):
                yield self.names[id(module.out_proj.weight)], axis, 0
            yield self.names[id(module.out_proj.bias)], 0, 0
        elif isinstance(module, nn.Module) and getattr(module, "weight", None) is not None:
            reads = not outward and isinstance(module, nn.Conv2d | nn.Linear)
            yield self.names[id(module.weight)], int(reads), 0
            if getattr(module, "bias", None) is not None and not reads:
                yield self.names[id(module.bias)], 0, 0

    def _forget(self, steps: Steps) -> None:
        """Note what was removed; positions count what was left before, the record counts the original."""
        gone: dict[tuple[str, int], list[int]] = {}
        for touched, positions in steps:
            for name, axis, shift in touched:
                gone.setdefault((name, axis), []).extend(position + shift for position in positions)
        for (name, axis), places in gone.items():
            if (name, axis) not in self.left:
                weight = dict(self.original.named_parameters())[name]
                module = self.original.get_submodule(name.rpartition(".")[0])
                self.left[name, axis] = np.arange(_length(weight, axis, getattr(module, "groups", 1)))
            self.left[name, axis] = np.delete(self.left[name, axis], places)


def ours(file: Path, parameters: set[str]) -> tuple[Network, Analysis, list[Coupling]]:
    """What the engine finds in the file."""
    network, _ = import_model(file, "onnx", None)
    analysis = analyse(network, network.sample_shapes)
    return network, analysis, couplings(network, analysis, parameters)


def our_figures(network: Network, analysis: Analysis, picture: Tensor) -> dict[str, Any]:
    """MACs left at the least, and the proof for random units."""
    whole = count(network, network.sample_shapes).macs
    least = cut(network, analysis, random_kept(analysis, None)).network
    result = cut(network, analysis, random_kept(analysis, REMOVED))
    proof = prove(network, result, analysis, {network.inputs[0].name: picture.numpy()})
    return {
        "macs": whole,
        "least": count(least, network.sample_shapes).macs / whole,
        "error": proof.error,
        "control": proof.control,
        "units": sum(group.num_units for group in analysis.groups),
        "inexact": sum(not group.exact for group in analysis.groups),
    }


def their_stages(net: nn.Module, picture: Tensor, folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is asked of Torch-Pruning after its groups: its networks are exported and counted by the same rules."""

    def compute() -> dict[str, Any]:
        torch.manual_seed(1)
        peer = Peer(net, picture)
        peer.prune(REMOVED)
        with torch.no_grad():
            got, masked, whole = (module.eval()(picture) for module in (peer.net, peer.masked(), net))
        return {"error": _difference(masked, got), "control": _difference(whole, got)}

    def narrow() -> dict[str, Any]:
        peer = Peer(net, picture)
        peer.prune(None)
        network, _ = import_model(export(peer.net.eval(), picture, folder / "least.onnx", folded=False), "onnx", None)
        return {"least_macs": count(network, network.sample_shapes).macs}

    return {"error": compute, "least": narrow}


def _tried(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception as error:  # whatever it is, it is this row's finding
        traceback.print_exc()
        return {f"{name}_failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _length(weight: Tensor, axis: int, groups: int) -> int:
    return weight.shape[axis] * (groups if axis == 1 else 1)


def _difference(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).abs().max() / (expected.max() - expected.min()))


def measure(name: str, folder: Path, file: Path) -> None:
    """The row of one network, written after every stage, so that a time limit leaves what came before it."""
    net, picture = build(name)
    parameters = {parameter for parameter, _ in net.named_parameters()}
    network, analysis, mine = ours(export(net, picture, folder / "net.onnx", folded=False), parameters)
    row: dict[str, Any] = {"ours": {"groups": len(mine)} | our_figures(network, analysis, picture), "theirs": {}}

    def group() -> dict[str, Any]:
        theirs = Peer(net, picture).groups()
        found = compare(mine, theirs)
        row["same"] = found.same
        row["only_ours"] = [_described(mine[number]) for number in found.only_ours]
        row["only_theirs"] = [_described(theirs[number]) for number in found.only_theirs]
        return {"groups": len(theirs)}

    stages = {"groups": group} | their_stages(net, picture, folder)
    for stage, work in stages.items():
        unfinished = {f"{later}_failed": "not finished in time" for later in stages if later not in row["theirs"]}
        file.write_text(json.dumps(row | {"theirs": unfinished | row["theirs"]}))
        row["theirs"] |= _tried(stage, work)
    if "least_macs" in row["theirs"]:
        row["theirs"]["least"] = row["theirs"]["least_macs"] / row["ours"]["macs"]
    file.write_text(json.dumps(row, indent=1))


def _described(coupling: Coupling) -> dict[str, Any]:
    return {"units": len(set(coupling.values())), "places": len(coupling), "parameters": parameters_of(coupling)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network")
    parser.add_argument("row", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.network, Path(folder), arguments.row)


if __name__ == "__main__":
    main()
