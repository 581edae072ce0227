"""From what the labelling found to groups of units: pins, partitions, slices and reasons."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worker.compressor.graph.channels.grouping import Analysis, Group, Home, Slice
from worker.compressor.graph.channels.labelling import Labelling, Mark
from worker.compressor.graph.channels.layer import Layer
from worker.compressor.graph.channels.partition import Partition, partition
from worker.compressor.graph.counts import is_layer, sources_of_constants

_ALONE = "all its channels depend on each other"
_EMPTY = "a part of a split would be left without channels"
_ENTANGLED = "a reshape takes turns with several copies of channels"
_UNEVEN = "a reshape or grouped operator would be left with uneven parts"
_NO_LABELS = "what it reads cannot be narrowed, and it makes no channels of its own"

#: The classes of a group, and how many of them may go.
Part = tuple[np.ndarray, Partition]
#: Classes, and for each row of an array how much more often they lie there than on average, times the number of rows.
Quota = tuple[np.ndarray, np.ndarray]


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
        self.moved, self.stretched = labelling.moved, labelling.stretched
        self.layers = {
            name: [Layer(self.classes[layer.array], layer.axes, layer.narrows) for layer in layers]
            for name, layers in labelling.layers.items()
        }
        self.reasons: dict[int, str] = {0: "it meets what cannot be narrowed"}
        for labels, why in self.evidence.pins:
            for label in np.unique(self.classes[labels]).tolist():
                self.reasons.setdefault(label, why)
        self._stay(self._entangled(), _ENTANGLED)
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
        self.quotas = self._quotas()

    def _entangled(self) -> list[int]:
        """Classes in rows that take turns and share some: their copies could change places when anything there goes."""
        found = []
        for array in self.evidence.interleaved:
            rows = self.classes[array]
            own = np.concatenate([np.unique(row) for row in rows])
            if (rows != rows[:1]).any() and len(np.unique(own)) < len(own):
                found += own.tolist()
        return found

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
        found = self._groups()
        group_of, unit_of = np.full(self.num, -1), np.full(self.num, -1)
        for number, (members, _) in enumerate(found):
            group_of[members], unit_of[members] = number, np.arange(len(members))
        slices, layers = self._slices(group_of, unit_of)
        made = tuple(
            Group(
                number,
                parts,
                tuple(slices.get(number, {}).values()),
                tuple(layers.get(number, {})),
                exact=not (why := self._inexact_because(members)),
                inexact_because=why,
                contracted=bool(self.contracted[members].any()),
            )
            for number, (members, parts) in enumerate(found)
        )
        homes: dict[str, list[Home]] = {}
        for home in self.evidence.homes:
            homes.setdefault(home.tensor, []).append(Home(home.tensor, home.axis, self.classes[home.labels]))
        return Analysis(
            made,
            self._kept_because(group_of),
            self.facts,
            self.layers,
            homes,
            self.moved,
            self.stretched,
            group_of,
            unit_of,
        )

    def _inexact_because(self, members: np.ndarray) -> str | None:
        return next((self.inexact[label] for label in members.tolist() if label in self.inexact), None)

    def _groups(self) -> list[Part]:
        """Groups of which something can go, and something always stays, on every axis. The rest gets its reason."""
        found, anchors = self._parts(), [0]
        while anchors:
            needs, anchors = self._needs(found)
            if anchors:
                self._stay(anchors, _EMPTY)
                found = self._parts()
        found = [(members, parts.keeping(need)) for (members, parts), need in zip(found, needs, strict=True)]
        for members, parts in found:
            self._stay(members[~parts.can_go].tolist(), _UNEVEN if len(members) > 1 else _ALONE)
        return [(members, parts) for members, parts in found if parts.can_go.any()]

    def _parts(self) -> list[Part]:
        """Classes that are decided on together, and their partition. Those that can never go are pinned, and left out."""
        is_free = self.produced.copy()
        is_free[list(self.reasons)] = False
        made = [self.classes[mark.labels].reshape(-1) for mark in self.evidence.marks if mark.role == "produces"]
        bound = [(is_free[labels], labels, uneven) for labels, uneven in self.quotas]
        quotas = [(labels[free], uneven[:, free]) for free, labels, uneven in bound if free.any()]
        layers = [array[is_free[array]] for array in {array.tobytes(): array for array in made}.values()]
        components = self._components([*layers, *(labels for labels, _ in quotas)])
        number_of, place = np.full(self.num, -1), np.full(self.num, -1)
        for number, members in enumerate(components):
            number_of[members], place[members] = number, np.arange(len(members))
        uneven = [[np.zeros((0, len(members)), np.int64)] for members in components]
        widths = [[np.zeros((0, len(members)), np.int64)] for members in components]
        for labels, rows in quotas:
            number = number_of[labels[0]]
            columns = np.zeros((len(rows), len(components[number])), np.int64)
            columns[:, place[labels]] = rows
            uneven[number].append(columns)
        for labels in filter(len, layers):
            number = number_of[labels[0]]
            widths[number].append(np.bincount(place[labels], minlength=len(components[number]))[None])
        found = [
            (members, partition(np.concatenate(rows), np.concatenate(layer)))
            for members, rows, layer in zip(components, uneven, widths, strict=True)
        ]
        dead = [label for members, parts in found for label in members[~parts.can_go].tolist()]
        self._stay(dead, _UNEVEN)
        return self._parts() if dead else found

    def _stay(self, labels: list[int], why: str) -> None:
        for label in labels:
            self.reasons.setdefault(label, why)

    def _needs(self, found: list[Part]) -> tuple[list[list[np.ndarray]], list[int]]:
        """For each group the sets of blocks of which a unit has to stay, so that no axis is left without channels.

        Also the classes that have to stay for the same reason, where an axis has no whole block: then the groups change.
        """
        owner, block = np.full(self.num, -1), np.zeros(self.num, np.int64)
        sizes = [parts.sizes for _, parts in found]
        for number, (members, parts) in enumerate(found):
            owner[members], block[members] = number, parts.blocks
        needs = [{"": np.ones(len(size), bool)} for size in sizes]
        anchors = []
        for line in [*self._lines(), *self._rows()]:
            labels = np.array(list(dict.fromkeys(line.tolist())))
            if (owner[labels] < 0).any():
                continue
            here = {
                number: np.bincount(block[labels[owner[labels] == number]], minlength=len(sizes[number]))
                for number in np.unique(owner[labels]).tolist()
            }
            whole = {number: counts == sizes[number] for number, counts in here.items()}
            if any((counts > found[number][1].removable).any() for number, counts in here.items()):
                continue
            if any(flags.all() for flags in whole.values()):
                continue
            number = max(whole, key=lambda index: whole[index].sum())
            if whole[number].any():
                needs[number][whole[number].tobytes()] = whole[number]
                continue
            label = int(labels[-1])
            sizes[owner[label]][block[label]] -= 1
            owner[label] = -1
            anchors.append(label)
        return [list(need.values()) for need in needs], anchors

    def _lines(self) -> list[np.ndarray]:
        """The classes along each axis that gets shorter by itself."""
        layers = [layer for layers in self.layers.values() for layer in layers if layer.is_line]
        return list({layer.array.tobytes(): layer.line() for layer in layers}.values())

    def _rows(self) -> list[np.ndarray]:
        """The classes in each of the rows that get shorter together, heads say."""
        layers = [layer for layers in self.layers.values() for layer in layers if len(layer.axes) > 1]
        arrays = {(layer.narrowed, layer.array.shape, layer.array.tobytes()): layer for layer in layers}
        rows = [row for layer in arrays.values() for row in np.unique(layer.rows(), axis=0)]
        return list({row.tobytes(): row for row in rows}.values())

    def _quotas(self) -> list[Quota]:
        """Arrays whose rows must lose equal numbers: grouped operators, reshapes to rows, and what interleaving adds."""
        layers = [layer for layers in self.layers.values() for layer in layers]
        arrays = [self.classes[blocks] for blocks in self.evidence.quotas]
        arrays += [layer.rows() for layer in layers if len(layer.axes) > 1]
        arrays = list({(array.shape, array.tobytes()): array for array in arrays}.values())
        parts = [row for array in arrays for row in array] + self._lines()
        found = [_quota(array) for array in arrays]
        for array in self.evidence.interleaved:
            rows = self.classes[array]
            inside = [np.isin(rows, part) for part in parts]
            # what is one piece of the line stays one where it loses equally many of each row
            pieces = {mask.tobytes(): mask for mask in inside if _is_piece(mask.T.reshape(-1))}
            found += [_quota(np.where(mask, rows, 0)) for mask in pieces.values()]
        return [(labels, uneven) for labels, uneven in found if len(labels)]

    def _components(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Classes that are decided on together: made by one layer, or bound by quotas. In order of appearance."""
        parent: dict[int, int] = {}

        def find(label: int) -> int:
            while parent[label] != label:
                parent[label] = parent[parent[label]]
                label = parent[label]
            return label

        for array in arrays:
            for label in array.tolist():
                parent.setdefault(label, label)
                one, other = find(int(array[0])), find(label)
                parent[max(one, other)] = min(one, other)
        found: dict[int, dict[int, None]] = {}
        for array in arrays:
            for label in array.tolist():
                found.setdefault(find(label), {})[label] = None
        return [np.array(list(members)) for members in found.values()]

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
        can_go = group_of >= 0
        can_go[list(self.reasons)] = False
        reasons = {}
        for node in self.network.nodes:
            if not is_layer(node, sources, self.network):
                continue
            layers = [layer.array.reshape(-1) for name in node.outputs for layer in self.layers.get(name, [])]
            labels = np.concatenate(layers) if layers else np.empty(0, np.int64)
            if not can_go[labels].any():
                why = [self.reasons[label] for label in labels.tolist() if label in self.reasons]
                reasons[node.name] = why[0] if why else _NO_LABELS
        return reasons


def _quota(array: np.ndarray) -> Quota:
    """What it takes that all rows lose the same; classes that lie in every row equally often are left out."""
    labels, place = np.unique(array, return_inverse=True)
    counts = np.zeros((len(array), len(labels)), np.int64)
    np.add.at(counts, (np.arange(len(array))[:, None], place.reshape(array.shape)), 1)
    uneven = np.unique(len(array) * counts - counts.sum(axis=0), axis=0)
    matters = uneven.any(axis=0) & (labels != 0)
    return labels[matters], uneven[:, matters]


def _is_piece(flags: np.ndarray) -> bool:
    """Whether a part of the line is flagged, all of it one after the other."""
    flagged = np.flatnonzero(flags)
    return 0 < len(flagged) < len(flags) and bool(flagged[-1] - flagged[0] == len(flagged) - 1)


def _homes_by_label(homes: list[Home], num: int) -> np.ndarray:
    """For each label the index of its home, -1 for none."""
    index = np.full(num, -1)
    for number, home in enumerate(homes):
        index[home.labels.reshape(-1)] = number
    return index


def _touched(mark: Mark, by_label: np.ndarray, homes: list[Home]) -> list[Home]:
    numbers = dict.fromkeys(by_label[mark.labels.reshape(-1)].tolist())
    return [homes[number] for number in numbers if number >= 0]
