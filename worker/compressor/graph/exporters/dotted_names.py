"""The weights of a module under the dotted names that they have in the uploaded file."""

from __future__ import annotations

import re
from typing import Any

from torch import fx, nn

from worker.compressor.graph.network import Network
from worker.compressor.graph.training.executor import TENSORS


def name_weights(module: fx.GraphModule, network: Network) -> None:
    """Put each tensor where its dotted name in the uploaded file says, so that the state dict has the same keys."""
    moved: dict[str, str] = {}
    for attribute, tensors in module.meta[TENSORS].items():
        if not hasattr(module, attribute):
            continue
        dotted = network.origins[tensors[0]].source
        owner = _owner(module, dotted)
        if owner is None or dotted == attribute:
            continue
        value, name = getattr(module, attribute), dotted.rpartition(".")[2]
        delattr(module, attribute)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(name, value)
        else:
            owner.register_buffer(name, value)
        moved[attribute] = dotted
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.target in moved:
            node.target = moved[node.target]
    module.recompile()


def _owner(module: nn.Module, dotted: str) -> nn.Module | None:
    """The submodule for a tensor of that name, made where it is missing; None where the name cannot be one."""
    *path, name = dotted.split(".")
    if not all(re.fullmatch(r"\w+", part) for part in (*path, name)):
        return None
    owner: Any = module
    for part in path:
        found = getattr(owner, part, None)
        if found is None and not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        elif not isinstance(found, nn.Module):
            return None
        owner = getattr(owner, part)
    return None if hasattr(owner, name) else owner
