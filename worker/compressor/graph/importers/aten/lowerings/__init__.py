"""Lowerings of aten operators to ONNX 17, one family per file; found by `table.LOWERINGS`."""
