"""Uploads become facts: a network is imported, normalised and described; a data set is read and checked."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.compressor.data.checks import describe as describe_arrays
from worker.compressor.data.formats import open_arrays
from worker.compressor.errors import ExportError, ImportFailed
from worker.compressor.outcome import Outcome
from worker.compressor.request import Request

_GZIP_LEVEL = 6


def inspect_dataset(request: Request) -> Outcome:
    """`ready` with `{fields, splits, num_classes}`; raises `DataError`."""
    assert request.dataset is not None
    return Outcome("ready", facts=describe_arrays(open_arrays(request.dataset.file, request.dataset.format)))


def inspect_model(request: Request) -> Outcome:
    """`ready` with the facts of the network, its graph in `output/graph.onnx`, and what goes beside it in `graph_facts`.

    A TorchScript file does not say what its inputs are: without a signature it is `ready` with the shapes unknown.

    Raises:
        ImportFailed: where the file is not one that can be taken.
    """
    from worker.compressor.graph.description import describe
    from worker.compressor.graph.exporters.onnx import write_onnx
    from worker.compressor.graph.importers import import_model

    source = request.source
    assert source is not None and source.file is not None
    if source.format == "torchscript" and request.signature is None:
        from worker.compressor.graph.importers.torchscript import load_module

        load_module(source.file)
        unknown = ("inputs", "outputs", "opset", "num_params", "macs", "macs_at", "layers", "graph_facts")
        return Outcome("ready", facts={**dict.fromkeys(unknown), "unsupported": []})
    with ThreadPoolExecutor(1) as beside:  # zlib works outside of Python's lock
        packed = beside.submit(gzip_bytes, source.file)
        network, graph_facts = import_model(source.file, source.format, request.signature)
        facts = describe(network, None)
    try:
        # For us alone, and we read graphs of any size.
        write_onnx(network, request.output / "graph.onnx", most_bytes=1 << 40)
    except ExportError as error:  # nothing was changed yet: it came like this
        raise _not_valid(error) from error
    graph_facts |= {
        "macs_at": facts["macs_at"],
        "source": {
            "format": source.format,
            "size_bytes": source.file.stat().st_size,
            "gzip_bytes": packed.result(),
        },
    }
    return Outcome("ready", facts={**facts, "graph_facts": graph_facts})


def _not_valid(error: ExportError) -> ImportFailed:
    is_dtype = "unsupported type" in error.detail
    return ImportFailed(
        f"the file is not valid ONNX at its opset: {error.detail.partition(': ')[2]}",
        code="unsupported_dtype" if is_dtype else "malformed_model",
        hint="Export with a newer opset: bfloat16 is in most operators since opset 13, in convolutions since 22."
        if is_dtype
        else "Export the network again and upload the new file.",
    )


def gzip_bytes(path: Path) -> int:
    """The size of a file after gzip at its default level: what a download costs over a compressing server."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    with path.open("rb") as file:
        size = sum(len(packer.compress(block)) for block in iter(lambda: file.read(1 << 20), b""))
    return size + len(packer.flush())
