"""How a network is called and what it gives back, where that is more than tensors in order: plain JSON, kept as a fact.

`{"args": [tree], "kwargs": [[name, tree]], "names": [name], "output": tree}`; a tree is `{"port": number}` (the input or
output of that number), `{"value": constant}`, `{"list": [tree]}`, `{"tuple": [tree]}` or `{"dict": [[key, tree]]}`.
A tuple whose items have names is `{"tuple": [tree], "type": name, "fields": [name]}`.
`"optional": number` says how many arguments at the end keep the defaults that they have in the upload (none has kwargs then).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Tree = dict[str, Any]
Structure = dict[str, Any]


def describe(value: Any, leaf: Callable[[Any], Tree]) -> Tree:
    """The tree of nested containers; `leaf` says what each other value is."""
    if isinstance(value, dict):
        return {"dict": [[key, describe(item, leaf)] for key, item in value.items()]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {"type": type(value).__name__, "fields": list(value._fields)}
        return {"tuple": [describe(item, leaf) for item in value], **fields}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [describe(item, leaf) for item in value]}
    return leaf(value)


def fill(tree: Tree, ports: Sequence[Any], named: Callable[[Tree, list[Any]], Any] | None = None) -> Any:
    """The nested containers with these values at the ports; `named` makes tuples whose items have names, else plain ones."""
    kind, content = _content(tree)
    if kind == "port":
        return ports[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: fill(item, ports, named) for key, item in content}
    items = [fill(item, ports, named) for item in content]
    if named is not None and "fields" in tree:
        return named(tree, items)
    return items if kind == "list" else tuple(items)


def _content(tree: Tree) -> tuple[str, Any]:
    """What kind of tree it is, and what it holds."""
    return next((kind, content) for kind, content in tree.items() if kind not in ("type", "fields"))


def leaves(tree: Tree) -> Iterator[Tree]:
    """Its ports and values, in order."""
    kind, content = _content(tree)
    if kind in ("port", "value"):
        yield tree
    for item in content if kind in ("list", "tuple", "dict") else ():
        yield from leaves(item[1] if kind == "dict" else item)


def paths(tree: Tree, path: str = "output") -> Iterator[str]:
    """A name for each port, in order: the keys and numbers that lead to it."""
    kind, content = _content(tree)
    if kind == "port":
        yield path
    is_root = path == "output"
    for key, item in content if kind == "dict" else enumerate(content) if kind in ("list", "tuple") else ():
        named = str(key) if is_root and kind == "dict" else f"{path}_{key}"
        yield from paths(item, named)


def is_plain(structure: Structure | None, num_inputs: int) -> bool:
    """Whether it says no more than that tensors go in by position, and come out as one tensor or a tuple of them."""
    if structure is None:
        return True
    plain = [{"port": number} for number in range(num_inputs)]
    output = structure["output"]
    items = output.get("tuple", [output])
    is_plain_output = "fields" not in output and all("port" in item for item in items)
    return structure["args"] == plain and not structure["kwargs"] and is_plain_output
