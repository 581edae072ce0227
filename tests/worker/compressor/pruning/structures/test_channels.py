"""What the structure `channels` chooses."""

import numpy as np

from app.spec.schema import Prune
from tests.worker.compressor.graph.nets import Residual, load
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import observe
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.structures.channels import Channels


def test_what_a_layer_draws_does_not_depend_on_the_layers_left_out(tmp_path):
    network, _ = load(Residual, tmp_path)
    spec = {"criterion": "random", "scope": "layer", "target": {"macs": "60%"}, "round_to": 1, "recovery": "none"}
    shapes = observe(network, network.sample_shapes).shapes

    def kept(include: list[str]) -> dict[int, set[int]]:
        prune = Prune.model_validate(spec | {"include": include})
        ceilings = {"macs": count(network, network.sample_shapes).macs * 6 // 10}
        structure = Channels(network, shapes, prune, lambda groups: Evidence(network, groups))
        choice = structure.choose(ceilings, np.random.default_rng(3), {})
        return {group: set(units.tolist()) for group, units in choice.kept.items()}

    all_cut, fewer_cut = kept(["*"]), kept(["/stem*", "/a2*", "/b*", "/skip*"])
    assert 1 < len(fewer_cut) < len(all_cut)
    # More is taken from the others, by the same order: what they keep is nested.
    assert all(units <= all_cut[group] or units >= all_cut[group] for group, units in fewer_cut.items())
