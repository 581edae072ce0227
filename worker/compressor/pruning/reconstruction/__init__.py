"""Repair of a cut network without labels: its layers are refitted to what the original computes on a few samples."""
