"""Students: which network a distillation trains, one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from worker.compressor.plugins import Described
from worker.compressor.registry import Registry

if TYPE_CHECKING:
    from worker.compressor.graph.network import Network


class Student(Described, ABC):
    """Gives the network that is trained towards the teacher."""

    @abstractmethod
    def build(self, current: Network, original: Network) -> Network:
        """An independent network with the ports of `original`."""


STUDENTS: Registry[Student] = Registry("student", __name__)
