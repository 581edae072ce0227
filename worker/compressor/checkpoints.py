"""What the next attempt goes on from: the steps that are done, what they cut, and the weights that they left.

Every file is written under a temporary name, synced and renamed, so a kill at any moment leaves the state before or after.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.compressor.data.formats import open_arrays
from worker.compressor.outcome import keep_whole, write_whole

if TYPE_CHECKING:
    from worker.compressor.graph.network import Network


class Checkpoints:
    """The folder of a job's checkpoints; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def training(self, step: int, inserted: bool) -> Path | None:
        """Where the training of a step keeps its own state; `inserted` is with BatchNorm put in."""
        name = f"training-{step}-normalised.pt" if inserted else f"training-{step}.pt"
        return None if self._folder is None else self._folder / name

    def save(self, step: int, network: Network, state: dict[str, Any]) -> None:
        """Record that the steps up to `step` are done. `state` is JSON-ready."""
        if self._folder is None:
            return
        weights = self._folder / f"weights-{step}.npz"
        temporary = weights.with_name(weights.name + ".tmp")
        with temporary.open("wb") as file:
            # Under plain numbers: numpy would take a tensor called `file` for its own argument.
            np.savez(file, **{str(i): _plain(array) for i, array in enumerate(network.tensors.values())})  # type: ignore[arg-type]
        keep_whole(temporary, weights)
        plain = {"step": step, "weights": weights.name, "names": list(network.tensors), **state}
        write_whole(self._folder / "state.json", json.dumps(plain).encode())

    def load(self) -> dict[str, Any] | None:
        """The newest recorded state, None where there is none."""
        path = None if self._folder is None else self._folder / "state.json"
        return json.loads(path.read_text()) if path is not None and path.exists() else None

    def restore(self, state: dict[str, Any], network: Network) -> None:
        """Put the recorded weights into a network of the same structure."""
        assert self._folder is not None
        arrays = {array.name: array for array in open_arrays(self._folder / state["weights"], "npz")}
        for i, name in enumerate(state["names"]):
            like = network.tensors[name]
            network.tensors[name] = np.array(arrays[str(i)].array()).view(like.dtype)

    def keep_best(self, network: Network) -> None:
        """Leave the best network so far as `best.onnx`: what a cancelled job still gives."""
        if self._folder is None:
            return
        from worker.compressor.graph.exporters.onnx import write_onnx

        temporary = self._folder / "best.onnx.tmp"
        write_onnx(network, temporary)
        keep_whole(temporary, self._folder / "best.onnx")


def _plain(array: np.ndarray) -> np.ndarray:
    """Numbers that NPY has a name for: bfloat16 goes as its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array
