"""The training view: recorded as torch calls, at any batch, with BatchNorm where it was folded away."""
