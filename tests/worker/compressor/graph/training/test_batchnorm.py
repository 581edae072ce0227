import numpy as np

from tests.worker.compressor.graph import nets
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.training.batchnorm import fold_batchnorm, insert_batchnorm
from worker.compressor.graph.training.executor import to_module, write_back


class TestInsertAndFold:
    def test_computes_the_same_inserted_and_folded(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path)
        feeds = nets.samples(network, 32)
        inserted = insert_batchnorm(network, feeds)
        folded = fold_batchnorm(inserted)
        assert sum(node.op == "BatchNormalization" for node in inserted.nodes) == 6
        for other in (inserted, folded):
            assert nets.difference(run(network, feeds)["y"], run(other, feeds)["y"]) < 1e-5
        assert folded.tensors.keys() == network.tensors.keys()
        assert [node.name for node in folded.nodes] == [node.name for node in network.nodes]

    def test_statistics_are_those_of_the_samples(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        feeds = nets.samples(network, 64)
        inserted = insert_batchnorm(network, feeds)
        module = to_module(inserted).train()
        module.batchnorm_momentum = 1.0
        import torch

        with torch.no_grad():
            module(torch.from_numpy(feeds["x"]))
        measured = inserted.copy()
        write_back(measured, module)
        for name in [name for name in inserted.tensors if "running" in name]:
            assert np.allclose(inserted.tensors[name], measured.tensors[name], rtol=2e-3, atol=1e-5)

    def test_a_network_that_has_its_own_gets_none(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        inserted = insert_batchnorm(network, nets.samples(network))
        assert sum(node.op == "BatchNormalization" for node in inserted.nodes) == 2
        assert sum(node.op == "BatchNormalization" for node in fold_batchnorm(inserted).nodes) == 1

    def test_a_convolution_without_bias_gets_one(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        for node in [node for node in network.graph if node.op_type == "BatchNormalization"]:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
        network.remove_unused()
        feeds = nets.samples(network, 16)
        folded = fold_batchnorm(insert_batchnorm(network, feeds))
        assert nets.difference(run(network, feeds)["y"], run(folded, feeds)["y"]) < 1e-5
