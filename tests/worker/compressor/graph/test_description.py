import json

from tests.worker.compressor.graph import nets
from worker.compressor.graph.description import describe


class TestDescribe:
    def test_has_the_facts_of_the_api_and_is_json(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        facts = json.loads(json.dumps(describe(network)))
        assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
        assert facts["outputs"] == [{"name": "y", "dtype": "float32", "shape": ["batch", 5]}]
        assert facts["opset"] == 17 and facts["unsupported"] == [] and facts["macs_at"] == {"x": [1, 3, 8, 8]}
        assert facts["macs"] == sum(row["macs"] for row in facts["layers"])
        assert facts["num_params"] == sum(row["params"] for row in facts["layers"])

    def test_layers_say_whether_they_can_be_cut_and_why_not(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        rows = describe(network)["layers"]
        assert [row["op"] for row in rows] == ["Conv", "Conv", "Gemm", "Gemm"]
        assert [row["prunable"] for row in rows] == [True, True, True, False]
        assert [row["kept_because"] is None for row in rows] == [True, True, True, False]
        assert (
            rows[0]["shapes"]
            == {
                "inputs": [[1, 3, 8, 8]],
                "weights": {"onnx::Conv_26": [8, 3, 3, 3], "onnx::Conv_27": [8]},
                "outputs": [[1, 8, 8, 8]],
            }
            or len(rows[0]["shapes"]["weights"]) == 2
        )

    def test_batchnorm_rows_are_there_and_prunable(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        rows = {row["name"]: row for row in describe(network)["layers"]}
        assert rows["/bn1/BatchNormalization"]["prunable"] and rows["/bn1/BatchNormalization"]["params"] == 16
