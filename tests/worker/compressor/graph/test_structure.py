from worker.compressor.graph.structure import describe, fill, leaves, paths

NESTED = {"scores": 0, "rest": (1, [2, None]), 3: ()}


def tree():
    return describe(NESTED, lambda value: {"value": None} if value is None else {"port": value})


class TestStructure:
    def test_containers_are_filled_as_they_were(self):
        assert fill(tree(), ["a", "b", "c"]) == {"scores": "a", "rest": ("b", ["c", None]), 3: ()}

    def test_leaves_come_in_order(self):
        assert list(leaves(tree())) == [{"port": 0}, {"port": 1}, {"port": 2}, {"value": None}]

    def test_ports_are_named_by_what_leads_to_them(self):
        assert list(paths(tree())) == ["scores", "rest_0", "rest_1_0"]
        assert list(paths({"port": 0})) == ["output"]
        assert list(paths({"tuple": [{"port": 0}, {"port": 1}]})) == ["output_0", "output_1"]
