"""The figures that a job reports, for the catalog; `tally` computes them."""

from __future__ import annotations

from typing import ClassVar

from worker.compressor.plugins import Described


class Accuracy(Described):
    """Share of rows whose highest score is that of their label."""

    name = "accuracy"
    help = "share of held-out rows whose highest score is that of their label (task classification)"
    needs: ClassVar[list[str]] = ["data", "labels"]


class Rmse(Described):
    """Root of the mean squared difference from the labels."""

    name = "rmse"
    help = "root of the mean squared difference from the labels (task regression)"
    needs: ClassVar[list[str]] = ["data", "labels"]


class Agreement(Described):
    """Share of rows on which old and new network have the same winner."""

    name = "agreement"
    help = "share of rows on which the first output of old and new network has the same winner on its last axis"


class OutputError(Described):
    """Relative distance of the new first output from the old."""

    name = "output_error"
    help = "root of the mean squared difference from the original's first output, over that output's standard deviation"


class Divergence(Described):
    """Distance of the new first output from the old, as one of distributions."""

    name = "divergence"
    help = (
        "mean Kullback-Leibler divergence of the original's class scores from the new ones, in nats; of other values the "
        "squared difference over twice the variance (sensitivity steps)"
    )
    needs: ClassVar[list[str]] = ["data"]


METRICS: tuple[type[Described], ...] = (Accuracy, Agreement, Divergence, OutputError, Rmse)
