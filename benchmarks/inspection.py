"""What the inspection of an upload costs: `python benchmarks/inspection.py [--only NAME] [FILE ...]`.

For each network in each format that comes in (or for ONNX files of your own), in a fresh process like those of the
service, with one thread for torch: seconds by the clock and by the processor from the bytes to the facts and the re-emitted
graph, with torch already loaded; and the peak of resident memory over what the process held before, in bytes and over
those of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.architectures import BertTiny, MobileNetV2, ResNet50, write_onnx
from worker.children import RETURN_MEMORY

#: name: (network, sample of a batch)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "resnet50": (ResNet50, lambda n: (torch.randn(n, 3, 224, 224),)),
    "mobilenet_v2": (MobileNetV2, lambda n: (torch.randn(n, 3, 224, 224),)),
    "bert_tiny": (BertTiny, lambda n: (torch.randint(0, 30000, (n, 64)), torch.ones(n, 64, dtype=torch.int64))),
}


def written(name: str, folder: Path) -> Iterator[tuple[Path, str, list[dict[str, Any]] | None]]:
    """The network as a file of each format, with the format's name and a signature where the format needs one."""
    make, samples = NETWORKS[name]
    torch.manual_seed(0)
    net, sample = make().eval(), samples(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = folder / f"{name}.onnx"
        write_onnx(net, sample, path, folded=True)
        yield path, "onnx", None
        path = folder / f"{name}.pt"
        torch.jit.trace(net, sample).save(str(path))  # type: ignore[no-untyped-call]
        rows = [
            {"name": f"x{i}", "dtype": str(x.dtype).removeprefix("torch."), "shape": ["batch", *x.shape[1:]]}
            for i, x in enumerate(sample)
        ]
        yield path, "torchscript", rows
        path = folder / f"{name}.pt2"
        batch = torch.export.Dim("batch")
        torch.export.save(torch.export.export(net, sample, dynamic_shapes=tuple({0: batch} for _ in sample)), path)
        yield path, "exported_program", None


def memory(field: str) -> int:
    """Bytes that this process holds now (`VmRSS`), or held at most (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def inspect(path: Path, format: str, signature: list[dict[str, Any]] | None) -> None:
    """The child's work: prints one JSON line."""
    from worker.compressor.graph import importers  # noqa: F401 - loaded before the clock runs
    from worker.compressor.inspection import inspect_model
    from worker.compressor.request import Request, Source

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Source(path, format, "", path.stat().st_size, path.name)
        given = (None, None, None, None, None)
        request = Request(Path(folder), "inspect_model", "", 1, 1, "cpu", source, signature, *given)
        request.output.mkdir()
        before, start, used = memory("VmRSS"), time.perf_counter(), time.process_time()
        facts = inspect_model(request).facts
        seconds, processor = time.perf_counter() - start, time.process_time() - used
        grown = memory("VmHWM") - before
    row = {
        "file": path.name,
        "size_mb": round(path.stat().st_size / 1e6, 1),
        "num_params": (facts or {}).get("num_params"),
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "peak_mb": round(grown / 1e6, 1),
        "peak_over_weights": round(grown / path.stat().st_size, 2),
    }
    print(json.dumps(row), flush=True)


def in_a_fresh_process(path: Path, format: str, signature: list[dict[str, Any]] | None) -> None:
    command = [sys.executable, __file__, "--child", format, json.dumps(signature), str(path)]
    subprocess.run(command, check=True, env=os.environ | RETURN_MEMORY | {"OMP_WAIT_POLICY": "PASSIVE"})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--child", nargs=2)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        inspect(arguments.files[0], arguments.child[0], json.loads(arguments.child[1]))
        return
    for path in arguments.files:
        in_a_fresh_process(path, "onnx", None)
    if arguments.files:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in [arguments.only] if arguments.only else NETWORKS:
            for file in written(name, Path(folder)):
                in_a_fresh_process(*file)


if __name__ == "__main__":
    main()
