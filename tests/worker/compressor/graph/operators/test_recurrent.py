"""LSTM, GRU and RNN in every form, against onnxruntime and against loops over single numbers."""

import itertools

import numpy as np
import onnx
import pytest
import torch

from benchmarks import node_tests
from tests.worker.compressor.graph.nets import difference, reference
from tests.worker.compressor.graph.operators.single import load, one_node
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module, write_back

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32) * 0.5


def operands(op, *, directions=1, bias=True, lens=None, state=False, memory=False, peepholes=False):
    gates = GATES[op]
    made = [
        normal(STEPS, BATCH, INPUTS),
        normal(directions, gates * HIDDEN, INPUTS),
        normal(directions, gates * HIDDEN, HIDDEN),
    ]
    made.append(normal(directions, 2 * gates * HIDDEN) if bias else None)
    made.append(None if lens is None else np.array(lens, np.int32))
    made.append(normal(directions, BATCH, HIDDEN) if state else None)
    if op == "LSTM":
        made += [
            normal(directions, BATCH, HIDDEN) if memory else None,
            normal(directions, 3 * HIDDEN) if peepholes else None,
        ]
    while made[-1] is None:
        made.pop()
    return made


def check(op, inputs, folder, opset=17, *, tolerance=2e-6, **attributes):
    """Stepped, recorded, scripted and scripted for other sizes: as onnxruntime."""
    attributes = {"hidden_size": HIDDEN, **attributes}
    model = one_node(op, inputs, opset, num_outputs_made=3 if op == "LSTM" else 2, **attributes)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    onnx.save(model, folder / "one.onnx")
    signature = [{"name": "i0", "dtype": "float32", "shape": ["steps", BATCH, INPUTS]}]
    network = import_model(folder / "one.onnx", "onnx", signature)[0]
    module = to_module(network)
    scripted = torch.jit.script(module.eval())
    feeds = [inputs[0]]
    if all(array is None for array in inputs[4:7]):
        feeds.append(normal(STEPS + 2, BATCH + 1, INPUTS))
    for x in feeds:
        wanted = reference(model, {"i0": x})
        given = torch.from_numpy(x)
        with torch.no_grad():
            made = [list(run(network, {"i0": x}).values()), module(given), scripted(given)]
        made.append(module.train()(given))
        module.eval()
        for outputs in made:
            for expected, got in zip(wanted, outputs, strict=True):
                array = got if isinstance(got, np.ndarray) else got.detach().numpy()
                assert difference(expected, array) < tolerance
    return network


class TestFused:
    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    @pytest.mark.parametrize("opset", [7, 14, 22])
    def test_common_form_as_onnxruntime(self, op, direction, opset, tmp_path):
        given = {"linear_before_reset": 1} if op == "GRU" else {}
        inputs = operands(op, directions=2 if direction == "bidirectional" else 1)
        check(op, inputs, tmp_path, opset, direction=direction, **given)

    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize(("bias", "state", "memory"), [*itertools.product([False, True], repeat=3)])
    def test_any_optional_input_may_be_absent(self, op, bias, state, memory, tmp_path):
        given = {"linear_before_reset": 1} if op == "GRU" else {}
        inputs = operands(op, directions=2, bias=bias, state=state, memory=memory)
        check(op, inputs, tmp_path, direction="bidirectional", **given)

    @pytest.mark.parametrize("op", ["LSTM", "GRU"])
    def test_weights_are_the_parameters_and_one_fused_call_computes(self, op, tmp_path):
        given = {"linear_before_reset": 1} if op == "GRU" else {}
        module = to_module(check(op, operands(op, directions=2), tmp_path, direction="bidirectional", **given))
        assert [tuple(p.shape)[:2] for p in module.parameters()][:2] == [(2, GATES[op] * HIDDEN)] * 2
        assert f"torch.{op.lower()}(" in module.code


class TestRows:
    """Gates lie in torch's order in the module, and in ONNX's in the network."""

    @pytest.mark.parametrize("op", ["LSTM", "GRU"])
    @pytest.mark.parametrize("directions", [1, 2])
    def test_a_step_arranges_nothing_and_trains_the_users_weights(self, op, directions, tmp_path):
        given = {"linear_before_reset": 1} if op == "GRU" else {}
        given["direction"] = "bidirectional" if directions == 2 else "forward"
        network = load(one_node(op, operands(op, directions=directions), 17, hidden_size=HIDDEN, **given), tmp_path)
        assert "torch.cat" not in to_module(network).code
        first, second = (trained(network, fused=fused) for fused in (True, False))
        for name, array in network.tensors.items():
            assert difference(second.tensors[name], first.tensors[name]) < 2e-6
            assert difference(array, first.tensors[name]) > 1e-3

    def test_a_weight_that_others_read_is_arranged_in_each_step(self, tmp_path):
        model = one_node("LSTM", operands("LSTM"), 17, hidden_size=HIDDEN)
        model.graph.node.append(onnx.helper.make_node("ReduceSum", ["i1"], ["sum"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
        model.graph.output[-1].type.tensor_type.shape.SetInParent()
        network = load(model, tmp_path)
        module = to_module(network)
        assert module.code.count("torch.cat") == 1
        x = normal(STEPS, BATCH, INPUTS)
        wanted, got = reference(model, {"i0": x}), module(torch.from_numpy(x))
        *states, total = (difference(one, other.detach().numpy()) for one, other in zip(wanted, got, strict=True))
        # The numbers that are summed up nearly cancel, and how they are rounded depends on the number of threads.
        assert max(states) < 2e-6 and total < 1e-5

    def test_one_weight_of_two_layers_stays_one(self, tmp_path):
        inputs = operands("LSTM", bias=False)
        model = one_node("LSTM", inputs, 17, hidden_size=HIDDEN)
        model.graph.node.append(onnx.helper.make_node("LSTM", ["i0", "i1", "i2"], ["other"], hidden_size=HIDDEN))
        model.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None))
        model.graph.output[-1].type.tensor_type.shape.SetInParent()
        network = load(model, tmp_path)
        module = to_module(network)
        assert sum(parameter.numel() for parameter in module.parameters()) == inputs[1].size + inputs[2].size
        first, *_, second = module(torch.from_numpy(inputs[0]))
        assert torch.equal(first, second)


def trained(network, **options):
    """A copy of the network after a few steps."""
    module, result = to_module(network, **options).train(), network.copy()
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for seed in range(3):
        x = torch.randn(STEPS, BATCH, INPUTS, generator=torch.Generator().manual_seed(seed))
        optimiser.zero_grad()
        module(x)[0].square().sum().backward()
        optimiser.step()
    write_back(result, module)
    return result


class TestSteps:
    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    def test_sequences_of_different_length_as_onnxruntime(self, op, direction, tmp_path):
        inputs = operands(op, directions=2 if direction == "bidirectional" else 1, lens=[3, 5, 1], state=True)
        check(op, inputs, tmp_path, direction=direction)

    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    def test_peepholes_as_onnxruntime(self, direction, tmp_path):
        directions = 2 if direction == "bidirectional" else 1
        inputs = operands("LSTM", directions=directions, state=True, memory=True, peepholes=True)
        check("LSTM", inputs, tmp_path, direction=direction)

    def test_input_and_forget_gate_coupled_as_onnxruntime(self, tmp_path):
        check("LSTM", operands("LSTM", peepholes=True), tmp_path, input_forget=1)

    @pytest.mark.parametrize("op", GATES)
    def test_clipped_as_onnxruntime(self, op, tmp_path):
        check(op, operands(op, directions=2), tmp_path, direction="bidirectional", clip=0.3)

    @pytest.mark.parametrize("opset", [7, 14, 22])
    def test_reset_before_the_product_as_onnxruntime(self, opset, tmp_path):
        check("GRU", operands("GRU", directions=2, state=True), tmp_path, opset, direction="bidirectional")

    @pytest.mark.parametrize("name", ["LeakyRelu", "HardSigmoid", "Elu", "Softsign", "Softplus"])
    def test_activation_as_onnxruntime(self, name, tmp_path):
        check("LSTM", operands("LSTM"), tmp_path, activations=["Sigmoid", name, name])

    @pytest.mark.parametrize("name", ["Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"])
    def test_activation_with_numbers_as_onnxruntime(self, name, tmp_path):
        options = {"activation_alpha": [0.3, 0.7]}
        if name in ("Affine", "HardSigmoid"):
            options["activation_beta"] = [0.4, 0.1]
        if name == "ScaledTanh":
            # Smaller ones leave outputs of a thousandth, where the reference's own tanh is off by 1e-5 of them.
            options["activation_beta"] = [1.4, 0.8]
        names = ["Sigmoid", name, name]
        check("LSTM", operands("LSTM"), tmp_path, activations=names, **options)

    @pytest.mark.parametrize("name", ["Affine", "ThresholdedRelu", "ScaledTanh", "Sinus"])
    def test_activation_that_is_not_told_is_refused(self, name, tmp_path):
        model = one_node("RNN", operands("RNN"), 17, num_outputs_made=2, hidden_size=HIDDEN, activations=[name])
        with pytest.raises(ImportFailed, match="node 'node'") as caught:
            load(model, tmp_path)
        assert caught.value.code == "unsupported_operator" and name.lower() in str(caught.value)

    @pytest.mark.parametrize("op", GATES)
    def test_other_activations_per_direction_as_onnxruntime(self, op, tmp_path):
        names = {"LSTM": ["Tanh", "Relu", "Sigmoid"], "GRU": ["Tanh", "Relu"], "RNN": ["Relu"]}[op]
        plain = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[op]
        # Gates that are not between 0 and 1 make states grow, and differences with them.
        given = {"direction": "bidirectional", "activations": [*plain, *names], "tolerance": 2e-5}
        check(op, operands(op, directions=2), tmp_path, **given)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plainly(op, inputs, *, layout, linear):
    """The second version: one sample, one step, one unit at a time, as the standard writes it; both directions."""
    x, w, r, b = inputs[:4]
    x = x.swapaxes(0, 1) if layout else x
    steps, batch, _ = x.shape
    y, last = np.zeros((2, steps, batch, HIDDEN, 2))[0], np.zeros((2, batch, HIDDEN, 2))
    gates = GATES[op]
    for d, n in np.ndindex(2, batch):
        h, c = np.zeros(HIDDEN), np.zeros(HIDDEN)
        wb, rb = b[d, : gates * HIDDEN], b[d, gates * HIDDEN :]
        for t in range(steps) if d == 0 else reversed(range(steps)):
            before, memory = h.copy(), c.copy()
            pre = {}
            for k, u in np.ndindex(gates, HIDDEN):
                row = k * HIDDEN + u
                pre[k, u] = (w[d, row] @ x[t, n] + wb[row], r[d, row] @ before + rb[row])
            for u in range(HIDDEN):
                if op == "RNN":
                    h[u] = np.tanh(sum(pre[0, u]))
                elif op == "LSTM":
                    i, o, f = (sigmoid(sum(pre[k, u])) for k in range(3))
                    c[u] = f * memory[u] + i * np.tanh(sum(pre[3, u]))
                    h[u] = o * np.tanh(c[u])
                else:
                    z = sigmoid(sum(pre[0, u]))
                    row = 2 * HIDDEN + u
                    reset = [sigmoid(sum(pre[1, v])) for v in range(HIDDEN)]
                    held = r[d, row] @ (np.array(reset) * before) + rb[row]
                    inner = reset[u] * pre[2, u][1] if linear else held
                    h[u] = (1 - z) * np.tanh(pre[2, u][0] + inner) + z * before[u]
            y[t, n, :, d] = h
        last[0, n, :, d], last[1, n, :, d] = h, c
    y, last = np.moveaxis(y, 3, 2), np.moveaxis(last, 3, 2)  # [S, B, D, H] and [2, B, D, H]
    if layout:
        return y.swapaxes(0, 1), last[0], last[1]
    return y.swapaxes(1, 2), last[0].swapaxes(0, 1), last[1].swapaxes(0, 1)


class TestSecondVersion:
    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize("layout", [0, 1])
    @pytest.mark.parametrize("linear", [0, 1])
    def test_as_the_standard_is_written(self, op, layout, linear, tmp_path):
        inputs = operands(op, directions=2)
        given = {"linear_before_reset": linear} if op == "GRU" else {}
        number = 3 if op == "LSTM" else 2
        model = one_node(
            op,
            inputs,
            14,
            num_outputs_made=number,
            hidden_size=HIDDEN,
            layout=layout,
            direction="bidirectional",
            **given,
        )
        wanted = plainly(op, inputs, layout=layout, linear=linear)[:number]
        network = load(model, tmp_path)
        got = run(network, {"i0": inputs[0]}).values()
        scripted = torch.jit.script(to_module(network).eval())(torch.from_numpy(inputs[0]))
        for expected, stepped, other in zip(wanted, got, scripted, strict=True):
            assert difference(expected, stepped) < 2e-6 and difference(expected, other.detach().numpy()) < 2e-6

    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize("form", [{}, {"clip": 5.0}])
    def test_gradients_are_those_of_small_differences(self, op, form, tmp_path):
        inputs = [None if array is None else array.astype(np.float64) for array in operands(op, directions=2)]
        model = one_node(op, inputs, 14, hidden_size=HIDDEN, direction="bidirectional", **form)
        module = to_module(load(model, tmp_path))
        x = torch.from_numpy(inputs[0])
        module(x)[0].square().sum().backward()
        for parameter in module.parameters():
            index = tuple(size // 2 for size in parameter.shape)
            sides = []
            for step in (1e-5, -2e-5):
                parameter.data[index] += step
                sides.append(module(x)[0].square().sum().item())
            parameter.data[index] += 1e-5
            assert abs((sides[0] - sides[1]) / 2e-5 - parameter.grad[index].item()) < 1e-6


class TestStandard:
    def test_every_case_of_the_standard_passes(self):
        cases = [case for case in node_tests.cases() if case.operator in GATES]
        failing = [outcome for case in cases if (outcome := node_tests.evaluate(case)).reason]
        assert len(cases) >= 18 and not failing, failing
