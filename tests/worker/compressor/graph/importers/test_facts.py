"""The graph that is kept of an upload is the network again, with its inputs and no others."""

import onnx
from onnx import helper

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model, load_graph


def test_a_file_that_lists_its_weights_among_the_inputs_comes_back_with_the_true_inputs(tmp_path):
    nets.export(nets.build(nets.Plain), tmp_path / "plain.onnx")
    model = onnx.load(tmp_path / "plain.onnx")
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "old.onnx")
    network, facts = import_model(tmp_path / "old.onnx", "onnx", None)
    write_onnx(network, tmp_path / "graph.onnx")
    assert len(onnx.load(tmp_path / "graph.onnx").graph.input) > 1
    assert load_graph(tmp_path / "graph.onnx", facts).inputs == network.inputs
    assert len(network.inputs) == 1


def test_layers_whose_biases_happen_to_be_equal_stay_independent(tmp_path):
    network, path = nets.load(nets.Shared, tmp_path)
    _, facts = import_model(path, "onnx", None)
    write_onnx(network, tmp_path / "graph.onnx")
    again = load_graph(tmp_path / "graph.onnx", facts)
    before, after = (analyse(net, net.sample_shapes) for net in (network, again))
    assert [group.layers for group in after.groups] == [group.layers for group in before.groups]
    assert {origin.source for origin in again.origins.values()} == {o.source for o in network.origins.values()}
