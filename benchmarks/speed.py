"""The training view against hand-written torch: `python benchmarks/speed.py [--only NAME] [--times 20] [--rounds 3]`.

For each network, from its ONNX file with BatchNorm folded away and with BatchNorm kept, prints one JSON line with the ratio of
our module's shortest time over the eager `nn.Module`'s with the same weights (folded: the same module with its BatchNorm
folded into the convolutions), forward and training step, interleaved, once for each round; by the clock and by the
processor's time, which tells more on a busy machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.architectures import BertTiny, MobileNetV2, ResNet50, Tagger, write_onnx
from worker.compressor.distillation.lessons import to_input
from worker.compressor.distillation.trainer import fast_layout
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module

#: name: (network, sample of a batch)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "resnet50": (ResNet50, lambda n: (torch.randn(n, 3, 96, 96),)),
    "mobilenet_v2": (MobileNetV2, lambda n: (torch.randn(n, 3, 96, 96),)),
    "bert_tiny": (
        BertTiny,
        lambda n: (torch.randint(0, 30000, (n, 64)), torch.ones(n, 64, dtype=torch.int64)),
    ),
    "lstm": (Tagger, lambda n: (torch.randn(n, 32, 64),)),
}
BATCH = 8


def fold(net: nn.Module) -> nn.Module:
    """The module with each BatchNorm folded into the convolution before it, as the export does it."""
    graph = torch.fx.symbolic_trace(copy.deepcopy(net).eval())
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if isinstance(modules.get(str(node.target)), nn.BatchNorm2d) and isinstance(before, torch.fx.Node):
            name = str(before.target)
            fused = fuse_conv_bn_eval(modules[name], modules[str(node.target)])
            graph.set_submodule(name, fused)
            modules[name] = fused
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def forward(module: nn.Module, sample: tuple[Tensor, ...]) -> Callable[[], None]:
    module.eval()

    def once() -> None:
        with torch.no_grad():
            module(*sample)

    return once


def step(module: nn.Module, sample: tuple[Tensor, ...]) -> Callable[[], None]:
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6)

    def once() -> None:
        optimizer.zero_grad()
        output = module(*sample)
        (output[0] if isinstance(output, tuple) else output).square().mean().backward()
        optimizer.step()

    return once


def shortest(ours: Callable[[], None], theirs: Callable[[], None], times: int) -> tuple[float, float, float, float]:
    """Shortest seconds of each, run in turn, by the clock and by the processor's time."""
    clock, processor = [float("inf")] * 2, [float("inf")] * 2
    for _ in range(times + 1):  # the first of each warms up and would never be the shortest
        for index, work in enumerate((ours, theirs)):
            start, used = time.perf_counter(), time.process_time()
            work()
            clock[index] = min(clock[index], time.perf_counter() - start)
            processor[index] = min(processor[index], time.process_time() - used)
    return (*clock, *processor)


def calibrate(net: nn.Module, samples: Callable[[int], tuple[Tensor, ...]]) -> nn.Module:
    """Statistics for the BatchNorm layers: with the initial ones the outputs of a deep network vanish."""
    net.train()
    with torch.no_grad():
        for _ in range(12):
            net(*samples(BATCH))
    return net.eval()


def compare(name: str, folded: bool, times: int, rounds: int, folder: Path) -> None:
    make, samples = NETWORKS[name]
    torch.manual_seed(0)
    net, sample = calibrate(make(), samples), samples(BATCH)
    path = folder / f"{name}.onnx"
    write_onnx(net, samples(2), path, folded=folded)
    peer = fold(net) if folded and name in ("resnet50", "mobilenet_v2") else net
    network, _ = import_model(path, "onnx", None)
    ours = fast_layout(to_module(network), torch.device("cpu"))
    given = tuple(to_input(tensor.numpy(), torch.device("cpu")) for tensor in sample)
    with torch.no_grad():
        wanted, got = peer(*sample), ours.eval()(*given)[0]
    error = float((wanted - got).abs().max() / wanted.abs().max())
    for kind, prepare in (("forward", forward), ("step", step)):
        pairs = [shortest(prepare(ours, given), prepare(peer, sample), times) for _ in range(rounds)]
        print(
            json.dumps(
                {
                    "network": name,
                    "file": "folded" if folded else "unfolded",
                    "what": kind,
                    "ratios": [round(a / b, 3) for a, b, *_ in pairs],
                    "processor_ratios": [round(c / d, 3) for *_, c, d in pairs],
                    "eager_s": round(min(pair[1] for pair in pairs), 4),
                    "error": f"{error:.0e}",
                }
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in [arguments.only] if arguments.only else NETWORKS:
            for folded in (True, False):
                compare(name, folded, arguments.times, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
