import dataclasses

import numpy as np
import pytest

from tests.worker.compressor.graph import nets
from worker.compressor.errors import GraphError
from worker.compressor.graph.channels import analyse
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class TestProve:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_a_right_cut_is_proven_and_the_control_differs(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path, keep_batchnorm=True)
        analysis = analyse(network, network.sample_shapes)
        proof = prove(
            network, cut(network, analysis, nets.random_kept(analysis.groups, 0.5)), analysis, nets.samples(network)
        )
        assert proof.error < 1e-5 and proof.control > 1e-2 and not proof.vacuous

    def test_a_wrong_channel_is_found(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        wrong = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        name = next(name for name in wrong.network.tensors if wrong.network.tensors[name].ndim == 4)
        wrong.network.tensors[name] = wrong.network.tensors[name][::-1].copy()
        with pytest.raises(GraphError) as caught:
            prove(network, wrong, analysis, nets.samples(network))
        assert caught.value.code == "surgery_failed"

    def test_a_wrong_channel_behind_a_saturated_output_is_found(self, tmp_path):
        network, _ = nets.load(nets.Sequence, tmp_path)
        for name in [name for name in network.tensors if name.endswith("bias")]:
            network.tensors[name] = network.tensors[name] + np.float32(40)  # sigmoid of all this is 1
        analysis = analyse(network, network.sample_shapes)
        wrong = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        name = next(name for name in wrong.network.tensors if wrong.network.tensors[name].ndim == 3)
        wrong.network.tensors[name] = wrong.network.tensors[name][::-1].copy()
        with pytest.raises(GraphError):
            prove(network, wrong, analysis, nets.samples(network))

    def test_removing_what_was_zero_anyway_proves_nothing(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        group = next(group for group in analysis.groups if group.layers == ("/fc1/Gemm",))
        weight = network.tensors["fc2.weight"].copy()
        weight[:, 3:] = 0
        network.tensors["fc2.weight"] = weight
        proof = prove(network, cut(network, analysis, {group.id: [0, 1, 2]}), analysis, nets.samples(network))
        assert proof.vacuous and proof.error < 1e-5

    def test_cut_is_frozen(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        with pytest.raises(dataclasses.FrozenInstanceError):
            cut(network, analysis, {0: [0]}).exact = False
