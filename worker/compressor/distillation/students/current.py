"""The network as the steps before left it: a pruned teacher is the best start that a student can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.compressor.distillation.students import STUDENTS, Student

if TYPE_CHECKING:
    from worker.compressor.graph.network import Network


@STUDENTS.register
class Current(Student):
    """Trains the current network itself."""

    name = "current"
    help = "the network as the steps before left it"

    def build(self, current: Network, original: Network) -> Network:
        """See `Student.build`."""
        return current.copy()
