"""From what the labelling found to groups of units: pins, blocks, slices and reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from worker.compressor.graph.counts import sources_of_constants, weights_of
from worker.compressor.graph.grouping import Analysis, Group, Home, Slice
from worker.compressor.graph.labelling import Labelling, Mark
from worker.compressor.graph.layer import Layer

_ALONE = "all its channels depend on each other"
_EMPTY = "a part of a split would be left without channels"
_UNEVEN = "a reshape or grouped operator would be left with uneven parts"
_NO_LABELS = "what it reads cannot be narrowed, and it makes no channels of its own"


def conclude(labelling: Labelling) -> Analysis:
    """The analysis of a finished walk."""
    return _Conclusion(labelling).analysis()


class _Conclusion:
    def __init__(self, labelling: Labelling) -> None:
        self.network = labelling.network
        self.facts = labelling.facts
        self.evidence = labelling.evidence
        self.classes = labelling.classes()
        self.num = len(self.classes)
        self.moved = labelling.moved
        self.layers = {
            name: [Layer(self.classes[layer.array], layer.axes, layer.narrows) for layer in layers]
            for name, layers in labelling.layers.items()
        }
        self.reasons: dict[int, str] = {0: "it meets what cannot be narrowed"}
        for labels, why in self.evidence.pins:
            for label in np.unique(self.classes[labels]).tolist():
                self.reasons.setdefault(label, why)
        self.inexact: dict[int, str] = {}
        for labels, why in self.evidence.inexact:
            for label in np.unique(self.classes[labels]).tolist():
                self.inexact.setdefault(label, why)
        self.contracted = np.zeros(self.num, bool)
        for labels in (*self.evidence.contracted, *self._summed_at_makers()):
            self.contracted[self.classes[labels]] = True
        for label in self._divided():
            self.inexact.setdefault(label, "the weights that read them are divided by their own norm")
        self.produced = np.zeros(self.num, bool)
        for mark in self.evidence.marks:
            if mark.role == "produces":
                self.produced[self.classes[mark.labels]] = True

    def _divided(self) -> Iterator[int]:
        """Classes of which a slice would be masked by zeros in a weight that is divided by its own norm there."""
        divided = np.unique(np.concatenate([*self.evidence.divided, np.empty(0, np.int64)]))
        for mark in self.evidence.marks:
            if mark.role == "consumes":
                yield from self.classes[np.intersect1d(mark.labels, divided)].tolist()
        yield from (label for label in self.classes[divided].tolist() if self.contracted[label])

    def _summed_at_makers(self) -> Iterator[np.ndarray]:
        """Labels of constants that are summed over where no consumer's slice is zeroed: the maker's has to be."""
        consumed = [mark.labels.reshape(-1) for mark in self.evidence.marks if mark.role == "consumes"]
        for labels in self.evidence.summed:
            yield np.setdiff1d(labels, np.concatenate([*consumed, [0]]))

    def analysis(self) -> Analysis:
        blocked = self._blocked_arrays()
        found = self._with_blocks(self._components(blocked), blocked)
        if self._anchor(found):
            found = self._with_blocks(self._components(self._blocked_arrays()), blocked)
        group_of, unit_of = np.full(self.num, -1), np.full(self.num, -1)
        groups = [(number, members, blocks) for number, (members, blocks) in enumerate(found)]
        for number, members, _ in groups:
            group_of[members], unit_of[members] = number, np.arange(len(members))
        slices, layers = self._slices(group_of, unit_of)
        made = tuple(
            Group(
                number,
                len(members),
                tuple(slices.get(number, {}).values()),
                tuple(layers.get(number, {})),
                exact=not (why := self._inexact_because(members)),
                inexact_because=why,
                blocks=blocks if len(blocks) else None,
                contracted=bool(self.contracted[members].any()),
            )
            for number, members, blocks in groups
        )
        homes: dict[str, list[Home]] = {}
        for home in self.evidence.homes:
            homes.setdefault(home.tensor, []).append(Home(home.tensor, home.axis, self.classes[home.labels]))
        return Analysis(
            made, self._kept_because(group_of), self.facts, self.layers, homes, self.moved, group_of, unit_of
        )

    def _inexact_because(self, members: list[int]) -> str | None:
        return next((self.inexact[label] for label in members if label in self.inexact), None)

    def _with_blocks(
        self, components: list[list[int]], blocked: list[np.ndarray]
    ) -> list[tuple[list[int], np.ndarray]]:
        """Components that can be cut, with the block of each unit; the others get their reason."""
        found = []
        for members in components:
            blocks = self._blocks(members, blocked) if len(members) > 1 else None
            if blocks is not None:
                found.append((members, blocks))
                continue
            for label in members:
                self.reasons.setdefault(label, _UNEVEN if len(members) > 1 else _ALONE)
        return found

    def _anchor(self, found: list[tuple[list[int], np.ndarray]]) -> bool:
        """Where a part of a split could be left with no channel at all, one of them has to stay. True: something was."""
        cell_of: dict[int, tuple[int, int]] = {}
        for number, (members, blocks) in enumerate(found):
            for index, label in enumerate(members):
                cell_of[label] = (number, int(blocks[index]) if len(blocks) else 0)
        sizes = Counter(cell_of.values())
        lines = {
            layer.array.tobytes(): layer.line() for layers in self.layers.values() for layer in layers if layer.is_line
        }
        anchored = False
        for line in lines.values():
            labels = dict.fromkeys(line.tolist())
            here = Counter(cell_of.get(label) for label in labels)
            # every cell keeps one unit at least, so a whole cell, or one channel that stays anyway, is enough
            if None in here or any(number == sizes[cell] for cell, number in here.items() if cell is not None):
                continue
            cell = cell_of[next(reversed(labels))]
            members, blocks = found[cell[0]]
            stays = members if len(blocks) else [next(reversed(labels))]
            for label in stays:
                self.reasons.setdefault(label, _EMPTY)
                cell_of.pop(label, None)
                sizes[cell] -= 1
            anchored = True
        return anchored

    def _blocked_arrays(self) -> list[np.ndarray]:
        """Class arrays whose rows must lose equal numbers. Where a row cannot lose any, none can: pinned until stable."""
        arrays = [self.classes[blocks] for blocks in self.evidence.quotas]
        for layers in self.layers.values():
            arrays += [layer.rows() for layer in layers if len(layer.axes) > 1]
        arrays = [array for array in arrays if not _is_even(array)]
        arrays = [_distinct(array) for array in arrays]
        unique = list({(array.shape, array.tobytes()): array for array in arrays}.values())
        changed = True
        while changed:
            changed = False
            for array in unique:
                free = np.array([[label not in self.reasons for label in row] for row in array.tolist()])
                if free.any() and not free.all():
                    for label in np.unique(array[free]).tolist():
                        self.reasons[label] = _UNEVEN
                    changed = True
        return unique

    def _components(self, blocked: list[np.ndarray]) -> list[list[int]]:
        """Free classes that are decided on together: made by one layer, or bound by blocks. In order of appearance."""
        parent: dict[int, int] = {}

        def find(label: int) -> int:
            while parent[label] != label:
                parent[label] = parent[parent[label]]
                label = parent[label]
            return label

        arrays = [self.classes[mark.labels] for mark in self.evidence.marks if mark.role == "produces"] + blocked
        for array in arrays:
            free = [label for label in array.reshape(-1).tolist() if self._is_free(label)]
            for label in free:
                parent.setdefault(label, label)
                one, other = find(free[0]), find(label)
                parent[max(one, other)] = min(one, other)
        found: dict[int, list[int]] = {}
        for array in arrays:
            for label in dict.fromkeys(array.reshape(-1).tolist()):
                if label in parent and label not in found.setdefault(find(label), []):
                    found[find(label)].append(label)
        return list(found.values())

    def _is_free(self, label: int) -> bool:
        return label not in self.reasons and bool(self.produced[label])

    def _blocks(self, members: list[int], blocked: list[np.ndarray]) -> np.ndarray | None:
        """Block of each unit, an empty array where there are none, None where no equal removal is possible."""
        inside = set(members)
        keys: dict[int, tuple[int, ...]] = dict.fromkeys(members, ())
        num_cuts: list[int] = []
        for array in blocked:
            if not inside & set(array.reshape(-1).tolist()):
                continue
            rows = _row_of_each(array)
            if rows is None:
                return None
            keys = {label: (*key, rows.get(label, -1)) for label, key in keys.items()}
            num_cuts.append(len(array))
        if not num_cuts:
            return np.empty(0, np.int64)
        cells = {key: number for number, key in enumerate(sorted(set(keys.values())))}
        # equal numbers in every cell are equal numbers in every row only where all rows have the same number of cells
        for position, num_rows in enumerate(num_cuts):
            per_row = [sum(key[position] == row for key in cells) for row in range(num_rows)]
            if len(set(per_row)) > 1:
                return None
        return np.array([cells[keys[label]] for label in members])

    def _slices(
        self, group_of: np.ndarray, unit_of: np.ndarray
    ) -> tuple[dict[int, dict[tuple[str, str, int, str], Slice]], dict[int, dict[str, None]]]:
        """For each group its slices, and the names of the layers that produce it, both in graph order."""
        slices: dict[int, dict[tuple[str, str, int, str], Slice]] = {}
        layers: dict[int, dict[str, None]] = {}
        homes = _homes_by_label(self.evidence.homes, self.num)
        for mark in self.evidence.marks:
            for home in _touched(mark, homes, self.evidence.homes):
                classes = self.classes[home.labels]
                owners = group_of[classes]
                key = (home.tensor, mark.node.name, home.axis, mark.role)
                for number in np.unique(owners[owners >= 0]).tolist():
                    units = np.where(owners == number, unit_of[classes], -1)
                    piece = Slice(home.tensor, mark.node.name, home.axis, units, mark.role)
                    slices.setdefault(number, {}).setdefault(key, piece)
                    if mark.role == "produces":
                        layers.setdefault(number, {})[mark.node.name] = None
        return slices, layers

    def _kept_because(self, group_of: np.ndarray) -> dict[str, str]:
        """A reason for each layer with weights none of whose outputs can be cut."""
        sources = sources_of_constants(self.network)
        reasons = {}
        for node in self.network.nodes:
            if not weights_of(node, sources, self.network):
                continue
            layers = [layer.array.reshape(-1) for name in node.outputs for layer in self.layers.get(name, [])]
            labels = np.concatenate(layers) if layers else np.empty(0, np.int64)
            if not (group_of[labels] >= 0).any():
                why = [self.reasons[label] for label in labels.tolist() if label in self.reasons]
                reasons[node.name] = why[0] if why else _NO_LABELS
        return reasons


def _is_even(array: np.ndarray) -> bool:
    """Whether every row holds the same classes equally often, so that any removal is even."""
    ordered = np.sort(array, axis=1)
    return bool((ordered == ordered[:1]).all())


def _distinct(array: np.ndarray) -> np.ndarray:
    """The array without rows that hold the same classes as another: they lose the same (heads that share keys)."""
    _, first = np.unique(np.sort(array, axis=1), axis=0, return_index=True)
    return np.ascontiguousarray(array[np.sort(first)])


def _row_of_each(array: np.ndarray) -> dict[int, int] | None:
    """The row that each class lies in; None where one lies in several, or some lie in a row more often than others."""
    rows: dict[int, int] = {}
    times: dict[int, int] = {}
    for number, row in enumerate(array.tolist()):
        for label in row:
            if rows.setdefault(label, number) != number:
                return None
            times[label] = times.get(label, 0) + 1
    return rows if len(set(times.values())) == 1 else None


def _homes_by_label(homes: list[Home], num: int) -> np.ndarray:
    """For each label the index of its home, -1 for none."""
    index = np.full(num, -1)
    for number, home in enumerate(homes):
        index[home.labels.reshape(-1)] = number
    return index


def _touched(mark: Mark, by_label: np.ndarray, homes: list[Home]) -> list[Home]:
    numbers = dict.fromkeys(by_label[mark.labels.reshape(-1)].tolist())
    return [homes[number] for number in numbers if number >= 0]
