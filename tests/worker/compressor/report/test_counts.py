import pytest

from worker.compressor.report.counts import pins


def row(name, before, after, why):
    return {"name": name, "macs_before": before, "macs_after": after, "kept_because": why}


class TestPins:
    def test_each_reason_tells_its_layers_and_their_share(self):
        rows = [
            row("a", 40, 10, None), row("b", 30, 20, "it sorts"), row("c", 20, 20, "it sorts"), row("d", 10, 10, "it writes")
        ]  # fmt: skip
        sorts, writes = pins(rows)
        assert (sorts["why"], sorts["layers"], sorts["macs"]) == ("it sorts", ["b", "c"], 40)
        assert (writes["why"], writes["share"]) == ("it writes", pytest.approx(0.1))
        assert sorts["share"] == pytest.approx(0.4)

    def test_a_network_without_macs_has_no_shares(self):
        assert pins([row("a", 0, 0, "it stays")])[0]["share"] == 0.0
