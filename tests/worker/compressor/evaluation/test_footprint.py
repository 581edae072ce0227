"""How many samples go through a network at once."""

from tests.worker.compressor.graph import nets
from worker.compressor.evaluation.footprint import affordable, sample_bytes


def test_a_sample_takes_several_times_its_widest_value(tmp_path):
    network, _ = nets.load(nets.Plain, tmp_path)
    widest = 8 * 8 * 8  # of the first convolution
    assert 4 * widest < sample_bytes(network, network.sample_shapes) <= 10 * 4 * widest


def test_larger_inputs_leave_room_for_fewer_samples_but_for_one_always(tmp_path):
    network, _ = nets.load(nets.Plain, tmp_path)
    each = sample_bytes(network, network.sample_shapes)
    assert affordable(network, network.sample_shapes, 7 * each + 1) == 7
    assert affordable(network, network.sample_shapes, each - 1) == 1
