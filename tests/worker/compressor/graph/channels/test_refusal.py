"""A group that cannot be cut is refused with a reason, and the others go on."""

import dataclasses

from tests.worker.compressor.graph import nets
from worker.compressor.errors import GraphError
from worker.compressor.graph.channels import analysis as module
from worker.compressor.graph.channels.analysis import analyse


class TestRefusal:
    def test_only_the_failing_group_stays_whole(self, tmp_path, monkeypatch):
        network, _ = nets.load(nets.Plain, tmp_path)
        sound = module.cut

        def cut(network, analysis, kept):
            for number in kept:
                if "/conv2/Conv" in analysis.groups[number].layers:
                    raise GraphError("an operator got its rewriting wrong")
            return sound(network, analysis, kept)

        monkeypatch.setattr(module, "cut", cut)
        analysis = analyse(network, network.sample_shapes)
        assert [group.layers for group in analysis.groups] == [("/conv1/Conv",), ("/fc1/Gemm",)]
        assert "cannot be carried through" in analysis.kept_because["/conv2/Conv"]

    def test_the_same_network_gives_the_same_groups(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path)
        other = network.copy()
        for name, array in other.tensors.items():
            if array.dtype.kind == "f":
                other.tensors[name] = array * 2
        first, second = (analyse(n, network.sample_shapes) for n in (network, other))
        assert [dataclasses.replace(g, slices=(), partition=None) for g in first.groups] == [
            dataclasses.replace(g, slices=(), partition=None) for g in second.groups
        ]
