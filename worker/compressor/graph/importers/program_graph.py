"""The graph of an exported program as JSON, checked before torch reads it.

Its loader evaluates the text of symbolic sizes, looks operators up by dotted path in all of torch, and writes names into
Python code that it then runs. What comes out of `clean_program` holds operators of torch's own tensor library, names that
are identifiers, and arithmetic; metadata, guards and extra signatures are left out.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator
from typing import Any

from worker.compressor.errors import ImportFailed

#: Bytes per element by torch's ScalarType numbers.
ELEMENT_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2, 29: 1, 30: 1, 31: 1,
    32: 1, 33: 1, 34: 4, 35: 8,
}  # fmt: skip
_SCHEMA = 8
_MOST_NESTED = 100
_MOST_TEXT = 10_000
_NAME = re.compile(r"[A-Za-z_]\w{0,999}", re.ASCII)
_DOTTED = re.compile(r"\w{1,200}(?:\.\w{1,200}){0,60}", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.\w+)?", re.ASCII)
_ARITHMETIC = re.compile(
    r"_operator\.(?:eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|getitem)"
    r"|math\.(?:trunc|ceil|floor)|torch\.sym_(?:not|int|float|ite|max|min|sqrt|sum)|torch\._sym_sqrt"
)
_FORBIDDEN = {"from_file", "_from_file", "save", "_save", "load", "_print"}
_HIGHER_ORDER = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}
_EXPRESSIONS = {
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Eq", "Equality", "Ne", "Unequality", "Ge",
    "GreaterThan", "Gt", "StrictGreaterThan", "Le", "LessThan", "Lt", "StrictLessThan", "And", "Or", "Not", "FloorDiv",
    "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
    "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "Identity", "true", "false",
}  # fmt: skip
_SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.UAdd, ast.Eq, ast.NotEq, ast.Lt,
    ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_LARGEST_POWER = 16
_DOTTED_KEYS = {"parameter_name", "buffer_name", "tensor_constant_name", "user_input_name"}
_NUMBERS = {"Infinity", "-Infinity", "NaN"}
_VERIFIERS = ("TRAINING", "ATEN")
_CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_RE_EXPORT = "Export the network again with torch.export, from torch's own operators."


def clean_program(plain: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The program with nothing in it but what a network needs, and the line of the user's source of each node.

    Raises:
        ImportFailed: `unsupported_version`, `unknown_operator`, `forbidden_operator`, `already_quantised`,
            `unsupported_operator`, `unsupported_feature` or `malformed_model`.
    """
    _check_depth(plain)
    version = plain.get("schema_version")
    if not isinstance(version, dict) or version.get("major") != _SCHEMA:
        raise ImportFailed(
            f"the program was saved in version {str(version)[:60]} of its format; {_SCHEMA} is taken",
            code="unsupported_version",
            hint="Save it with torch 2.8 or newer.",
        )
    module = _dict(plain.get("graph_module"))
    graph = _dict(module.get("graph"))
    lines = dict(_lines(graph))
    verifiers = [name for name in plain.get("verifiers") or [] if name in _VERIFIERS]
    cleaned = {
        "graph_module": {
            "graph": _clean("graph", graph, lines),
            "signature": _clean("signature", _dict(module.get("signature")), lines),
            "module_call_graph": [_call(module.get("module_call_graph"))],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": int(_dict(plain.get("opset_version")).get("aten") or 0)},
        "range_constraints": {
            _name(key): {end: _whole(_dict(row).get(end)) for end in ("min_val", "max_val")}
            for key, row in _dict(plain.get("range_constraints")).items()
            if _NAME.fullmatch(key)  # those of `8*s0` follow from those of `s0`
        },
        "schema_version": {"major": _SCHEMA, "minor": int(version.get("minor") or 0)},
        "verifiers": verifiers or ["TRAINING"],
        "torch_version": "",
        "guards_code": [],
    }
    return cleaned, lines


def _check_depth(plain: Any) -> None:
    level, depth = [plain], 0
    while level:
        depth += 1
        if depth > _MOST_NESTED:
            raise _malformed("the program is nested too deep to be read")
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(inner, dict | list)
        ]


def _lines(graph: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Node name and the last line of its stack trace: where in the user's source it comes from."""
    for node in graph.get("nodes") or []:
        trace = _dict(_dict(node).get("metadata")).get("stack_trace")
        places = re.findall(r'File "([^"\n]{1,300})", line (\d+)', trace) if isinstance(trace, str) else []
        own = [place for place in places if "/torch/" not in place[0]] or places
        if own and node.get("name"):
            yield str(node["name"]), f"{own[-1][0].rpartition('/')[2]}:{own[-1][1]}"


def _clean(key: str, value: Any, lines: dict[str, str]) -> Any:
    """The value as it is, of plain parts alone; text is let through by what its key means."""
    if isinstance(value, dict):
        if set(value) == {"type", "index"} and isinstance(value["type"], str):
            return {"type": "cpu" if value["type"] != "meta" else "meta", "index": None}
        if "target" in value:
            _check_operator(value, lines)
        _check_custom(value)
        kept = {k: v for k, v in value.items() if k not in ("metadata", "custom_obj_values")}
        found = {_name(k): _clean(k, v, lines) for k, v in kept.items()}
        return {**found, "metadata": {}} if "target" in value else found
    if isinstance(value, list):
        return [_clean(key, item, lines) for item in value]
    if isinstance(value, str):
        return _text(key, value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise _malformed(f"the program holds something that is no JSON at '{key[:60]}'")


def _text(key: str, text: str) -> str:
    if key in ("as_string", "as_strings"):
        if len(text) > _MOST_TEXT:
            raise _malformed("the program holds a text that is too long")
        return text
    if key == "expr_str":
        return _expression(text)
    if key == "target":
        return text  # checked with its node
    if key in _DOTTED_KEYS:
        if not _DOTTED.fullmatch(text):
            raise _malformed(f"'{text[:100]}' cannot be the name of a tensor")
        return text
    if key in ("as_float", "as_floats", "as_float_lists") and text in _NUMBERS:
        return text
    return text if key == "name" and text == "" else _name(text)


def _name(text: Any) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text) or (keyword.iskeyword(text) and text not in _SAFE):
        raise _malformed(f"'{str(text)[:100]}' cannot be a name")
    return text


#: Arguments of torch's operators are called so; they reach generated code as arguments by position or in a dict.
_SAFE = {"from", "lambda", "in", "is"}


def _check_operator(node: dict[str, Any], lines: dict[str, str]) -> None:
    """Refuse a node that calls anything but torch's tensor operators and arithmetic."""
    target, name = str(node["target"]), str(node.get("name") or "")[:100]
    place = f"node '{name}'" + (f" ({lines[name]})" if name in lines else "")
    match = _OPERATOR.fullmatch(target)
    if match is None:
        if _ARITHMETIC.fullmatch(target):
            return
        raise ImportFailed(
            f"{place} calls {target[:100]}, which is no operator of a network",
            code="forbidden_operator",
            hint=_RE_EXPORT,
        )
    namespace, operator = match[1], match[2]
    if namespace.startswith(("quantized", "torchao")):
        raise ImportFailed(
            f"{place} works on quantised numbers ({namespace}::{operator})",
            code="already_quantised",
            hint="Upload the network as it was before quantisation.",
        )
    if namespace == "higher_order":
        if operator not in _HIGHER_ORDER:
            raise ImportFailed(
                f"{place} uses {operator}, which is not supported",
                code="unsupported_operator",
                hint="Export the network without control flow that depends on data.",
            )
    elif namespace == "aten" and operator in _FORBIDDEN:
        raise ImportFailed(
            f"{place} calls aten::{operator}, which touches files", code="forbidden_operator", hint=_RE_EXPORT
        )
    elif namespace not in ("aten", "prims", "prim"):
        raise ImportFailed(
            f"{place} uses the operator {namespace}::{operator}, which is not part of torch",
            code="unknown_operator",
            hint=_RE_EXPORT,
        )


def _check_custom(value: dict[str, Any]) -> None:
    for key in ("as_custom_obj", "custom_obj", "as_operator", "token"):
        if value.get(key) is not None:
            raise ImportFailed(
                "the program holds an object that is no tensor", code="unsupported_feature", hint=_RE_EXPORT
            )
    if value.get("custom_obj_values"):
        raise ImportFailed("the program holds objects that are no tensors", code="unsupported_feature", hint=_RE_EXPORT)


def _expression(text: str) -> str:
    """Arithmetic with symbols, as sympy writes it; the loader evaluates it as Python."""
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= _MOST_TEXT else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not all(_is_arithmetic(node) for node in ast.walk(tree)):
        raise _malformed(f"the size '{text[:100]}' is no arithmetic")
    return text


def _is_arithmetic(node: ast.AST) -> bool:
    if not isinstance(node, _SYNTAX):
        return False
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _NAME.fullmatch(node.value) is not None or re.fullmatch(r"[-+.\de]{1,60}", node.value) is not None
        return isinstance(node.value, bool) or (isinstance(node.value, int | float) and abs(node.value) < 2.0**64)
    if isinstance(node, ast.Call):
        power = isinstance(node.func, ast.Name) and node.func.id in ("Pow", "PowByNatural", "FloatPow", "LShift")
        small = not power or (len(node.args) == 2 and _is_small(node.args[1]))
        return isinstance(node.func, ast.Name) and node.func.id in _EXPRESSIONS and small
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small(node.right)
    if isinstance(node, ast.Name):
        return node.id in _EXPRESSIONS or re.fullmatch(r"[a-z]{1,2}\d{1,9}|int_oo", node.id) is not None
    return True


def _is_small(node: ast.AST) -> bool:
    """Whether an exponent is a small number, so that nothing huge is computed."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and node.args:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= _LARGEST_POWER


def _call(entries: Any) -> dict[str, Any]:
    """How the whole network is called: its containers and argument names; those of its parts are left out."""
    entry = next((e for e in entries or [] if isinstance(e, dict) and e.get("fqn") == ""), None)
    signature = _dict(_dict(entry).get("signature"))
    names = signature.get("forward_arg_names")
    return {
        "fqn": "",
        "signature": {
            "inputs": [],
            "outputs": [],
            "in_spec": _structure(signature.get("in_spec")),
            "out_spec": _structure(signature.get("out_spec")),
            "forward_arg_names": None if names is None else [_name(name) for name in names],
        },
    }


def _structure(text: Any) -> str:
    """A pytree spec of plain containers: classes of the user's become a dict where their fields are known, else a tuple."""
    try:
        protocol, spec = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise _malformed("the program does not say how it is called") from error
    if protocol != 1:
        raise ImportFailed("the program's containers are in a form that is not known", code="unsupported_version")
    _check_depth(spec)
    return json.dumps([1, _container(_dict(spec))])


def _container(spec: dict[str, Any]) -> dict[str, Any]:
    kind, context = spec.get("type"), spec.get("context")
    children = [_container(_dict(child)) for child in spec.get("children_spec") or []]
    if kind is None:
        return {"type": None, "context": None, "children_spec": []}
    keys = _keys(context)
    if kind not in _CONTAINERS:
        kind = "builtins.dict" if keys is not None and len(keys) == len(children) else "builtins.tuple"
    if kind in ("builtins.dict", "collections.OrderedDict"):
        if keys is None or len(keys) != len(children):
            raise _malformed("a dict of the program does not fit its keys")
        return {"type": kind, "context": json.dumps(keys), "children_spec": children}
    return {"type": kind, "context": "null", "children_spec": children}


def _keys(context: Any) -> list[str | int] | None:
    try:
        keys = json.loads(context)
    except (TypeError, ValueError):
        return None
    plain = isinstance(keys, list) and all(isinstance(key, str | int) and len(str(key)) < 1000 for key in keys)
    return keys if plain else None


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed("a part of the program is missing or not in the form that torch.export writes")
    return value


def _whole(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and abs(value) < 1 << 64):
        return value
    raise _malformed("a range of the program is no number")


def _malformed(detail: str) -> ImportFailed:
    return ImportFailed(detail, code="malformed_model", hint=_RE_EXPORT)
