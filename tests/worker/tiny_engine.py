"""A tiny engine with the real one's entry point, for tests of what is around it. The upload's name says what it does:
words like `sleep=3`, `crash=SIGSEGV`, `raise`, `print=100`, `memory=2000` (MB), `spin`, `fork`, `best`, `trace=FOLDER`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path


def run(work_dir, emit, should_stop):
    request = json.loads((work_dir / "request.json").read_text())
    words = dict(word.partition("=")[::2] for word in ((request["source"] or {}).get("name") or "").split())
    if request["kind"] != "compress":
        words = {k[1:]: v for k, v in words.items() if k.startswith("i")}  # icrash=…: while it is inspected
    if "trace" in words:
        Path(words["trace"], f"{request['id']}-{request['attempt']}-{os.getpid()}").touch()
    _behave(words, request, emit)
    (work_dir / "outcome.json").write_text(json.dumps(_outcome(work_dir, request)))


def _behave(words, request, emit):
    emit({"kind": "progress", "stage": "prune", "progress": 0.1, "eta_seconds": 1.0})
    emit({"kind": "metric", "name": "loss", "step": 1, "stage": "prune", "value": 0.5})
    if "best" in words:
        (Path(request["checkpoints"]) / "best.onnx").write_bytes(b"best so far")
    if "fork" in words:
        subprocess.Popen(["sleep", "600"])
    if "print" in words:
        for _ in range(int(words["print"])):
            print("x" * (1 << 20))
    if "memory" in words:
        kept = [bytearray(os.urandom(1 << 20)) for _ in range(int(words["memory"]))]
        time.sleep(60 if kept else 0)
    if "raise" in words:
        raise RuntimeError("as asked")
    if "crash" in words and (not words.get("once") or request["attempt"] == 1):
        os.kill(os.getpid(), getattr(signal, words["crash"]))
    end = time.monotonic() + float(words.get("sleep") or 0)
    while time.monotonic() < end:
        time.sleep(0.05)
        emit({"kind": "progress", "stage": "distill", "progress": 0.5})
    while "spin" in words:
        pass


def _outcome(work_dir, request):
    if request["kind"] == "inspect_dataset":
        fields = [{"name": "x", "dtype": "float32", "shape": [10, 4]}]
        return {"status": "ready", "facts": {"fields": fields, "splits": {"train": 10}, "num_classes": None}}
    if request["kind"] == "inspect_model":
        has_signature = request["source"]["format"] == "onnx" or request["signature"]
        ports = [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]
        facts = {"inputs": ports, "outputs": ports, "num_params": 1, "macs": 1, "graph_facts": {"a": 1}, "layers": []}
        if has_signature:
            (work_dir / "output" / "graph.onnx").write_bytes((work_dir / request["source"]["file"]).read_bytes())
        return {"status": "ready", "facts": facts if has_signature else {"inputs": None}}
    graph = (work_dir / request["graph"]["file"]).read_bytes()
    assert json.loads((work_dir / request["graph"]["facts"]).read_text())
    (work_dir / "output" / "model.onnx").write_bytes(graph + b" smaller")
    artifact = {"name": "model.onnx", "kind": "model", "format": "onnx", "file": "output/model.onnx"}
    return {"status": "succeeded", "result": {"ratio": {}}, "warnings": ["tiny"], "artifacts": [artifact]}
