"""Operators that the engine will not execute, with the reason in the user's words, and what to do."""

from __future__ import annotations

_UNROLL = (
    "Export with a fixed number of steps: torch.onnx.export of a traced module writes loops out, and LSTM, GRU and RNN "
    "layers are exported as one operator."
)
_TENSORS = (
    "Let the network take and give plain tensors, and join lists with torch.cat or torch.stack before the export."
)
_RANDOM = "Draw the random numbers outside, and give them to the network as an input."

#: Operator → (what it does that cannot be followed, what to do).
REFUSED: dict[str, tuple[str, str]] = {
    "Loop": ("it repeats a part of the network as often as the data says", _UNROLL),
    "Scan": ("it repeats a part of the network along an axis", _UNROLL),
    "SequenceMap": ("it repeats a part of the network for each tensor of a list", _UNROLL),
    **dict.fromkeys(
        (
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SplitToSequence",
            "ConcatFromSequence",
        ),
        ("it handles a list of tensors, whose length is known only at run time", _TENSORS),
    ),
    **dict.fromkeys(
        ("Optional", "OptionalGetElement", "OptionalHasElement"),
        ("it handles a value that may be absent at run time", _TENSORS),
    ),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        ("it draws random numbers, so that no copy of the network can be compared with it", _RANDOM),
    ),
}
