"""Numbered cases that bring any ONNX graph to one form, without changing what it computes or the user's opset.

1. `constants`: Constant nodes become initializers.
2. `filled`: ConstantOfShape over a constant shape becomes an initializer, over a partly constant one an Expand of it.
3. `identities`: Identity of an initializer goes; its readers read a copy that remembers the source.
4. `listed_inputs`: initializers that IR 3 lists among the inputs are inputs no more.
5. `stale_shapes`: recorded shapes of inner values go, they would be wrong after a cut.
6. `shared_vectors`: a vector shared by several operators becomes a copy for each, tied as long as they are equal.
7. `states`: initial states of recurrent operators that are zero go, and an absent first output gets a name.
8. `functions`: local functions are written out where they are called.
9. `branches`: an If whose condition is known goes; the branch that it takes stays. These two come first, so that the
   others see all nodes.
10. `whole_numbers`: Cast of a constant to whole numbers becomes an initializer.
11. `standardised`: weights that are standardised by a BatchNormalization in training mode are by an InstanceNormalization.
12. `written`: a scatter of constants into a constant becomes an initializer that remembers the source.
13. `shuffles`: what changes the order along one axis by reshapes becomes a Gather; applied once shapes are known.
"""

from __future__ import annotations

import onnx_ir as ir

from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.normalise import (
    branches,
    constants,
    filled,
    functions,
    identities,
    listed_inputs,
    shared_vectors,
    stale_shapes,
    standardised,
    states,
    whole_numbers,
    written,
)


def normalise(model: ir.Model, signature: branches.Signature | None = None) -> Network:
    """The network of that model after all cases; `model` belongs to it from now on. `signature` fixes free sizes.

    Raises:
        ImportFailed: for local functions that cannot be written out, and choices that depend on data.
    """
    functions.apply(model)
    listed_inputs.apply(model)
    branches.apply(model, signature)
    constants.apply(model)
    whole_numbers.apply(model)
    made = filled.apply(model)
    stale_shapes.apply(model)
    states.apply(model)
    tensors = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None  # an initializer without content does not parse
        tensors[name] = value.const_value.numpy()
        value.const_value = None
    network = Network(
        model, tensors, origins={name: Origin(name, array.shape, made=name in made) for name, array in tensors.items()}
    )
    identities.apply(network)
    standardised.apply(network)
    written.apply(network)
    shared_vectors.apply(network)
    network.remove_unused()
    return network
