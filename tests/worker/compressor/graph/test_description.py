import json

import onnx

from tests.worker.compressor.graph import nets
from worker.compressor.graph.description import describe
from worker.compressor.graph.importers import import_model


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
        assert rows[0]["shapes"]["inputs"] == [[1, 3, 8, 8]] and rows[0]["shapes"]["outputs"] == [[1, 8, 8, 8]]
        assert sorted(rows[0]["shapes"]["weights"].values()) == [[8], [8, 3, 3, 3]]

    def test_axes_without_a_name_are_given_one(self, tmp_path):
        path = nets.export(nets.build(nets.Residual), tmp_path / "net.onnx")
        model = onnx.load(path)
        for axis, size in ((0, -1), (2, None), (3, None)):
            model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
            if size:
                model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        onnx.save(model, path)
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
        facts = describe(import_model(path, "onnx", signature)[0])
        assert facts["inputs"][0]["shape"] == ["batch", 3, "dim_2", "dim_3"]
        assert facts["macs_at"] == {"x": [1, 3, 8, 8]}

    def test_batchnorm_rows_are_there_and_prunable(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        rows = {row["name"]: row for row in describe(network)["layers"]}
        assert rows["/bn1/BatchNormalization"]["prunable"] and rows["/bn1/BatchNormalization"]["params"] == 16
