"""Does a channel stay zero whose makers are zero? Where channels are summed over without a weight, a cut is exact only then."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from worker.compressor.graph.network import Network, Node

#: What makes a channel from weights of its own (its bias or scale is zeroed as well).
_MAKERS = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "BatchNormalization", "LayerNormalization",
    "InstanceNormalization", "RMSNormalization",
}  # fmt: skip
FROM_ZERO_TO_ZERO = {
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf", "Floor", "Gelu", "HardSwish",
    "Identity", "LeakyRelu", "Mish", "Neg", "PRelu", "Relu", "Round", "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile", "Resize", "Upsample",
    "DepthToSpace", "SpaceToDepth", "GatherElements", "RotaryEmbedding",
}  # fmt: skip
_ALL_ZERO = {"Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat"}


def keeps_zero(
    node: Node, network: Network, zero: AbstractSet[str], labelled: AbstractSet[str], derived: AbstractSet[str]
) -> bool:
    """Whether a channel of the outputs is zero when its makers are.

    `zero` names the values of which that is known, `labelled` the inputs that have channels at all, `derived` the values
    that are made from constants alone (a weight that is transposed first is a maker like any other).
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    if all(name in network.tensors or name in derived for name in node.inputs if name):
        zero = zero | {name for name in labelled if name in network.tensors}
    if node.op in ("Gather", "GatherND"):
        return node.inputs[0] in network.tensors or node.inputs[0] in zero
    if node.op in _MAKERS:
        has_weights = any(name in network.tensors or (name in derived and name in zero) for name in node.inputs)
        return has_weights or (bool(labelled) and labelled <= zero)
    if node.op in FROM_ZERO_TO_ZERO:
        return node.inputs[0] in zero
    if node.op == "Attention":  # gives means of the values, and where asked keys and values themselves
        return all(name in zero for name in (node.inputs[2:3] if len(node.outputs) == 1 else node.inputs[1:3]))
    if node.op == "Mul":
        return any(name in zero for name in node.inputs)
    if node.op == "Div":
        return node.inputs[0] in zero
    if node.op in _ALL_ZERO and any(name in zero for name in node.inputs):
        return all(name in zero or _is_masked_too(name, network) for name in node.inputs if name)
    return False


def _is_masked_too(name: str, network: Network) -> bool:
    """Whether a constant operand is zeroed with the channel (it has entries of its own for each), or is zero."""
    array = network.tensors.get(name)
    return array is not None and (array.size > 1 or not array.any())
