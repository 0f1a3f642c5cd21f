"""Which rows of prompts are kept, and on which side of the split they are, from some bytes of each.

Of a row 37 bytes are held while files are read: a digest of its conversation, its place, the split that it says, and
what it draws; of an earlier prompt within the same conversation 24. To find the rows that are the same takes 33 more
for a while. Digests have 16 bytes: that any two of ten million different conversations have the same one has a chance
of 10⁻²⁵.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from constitutional.base.records import Split
from constitutional.data.sources import DataFile, RowPlace, mixture

SIDES: Final[tuple[Split | None, ...]] = (None, "train", "held_out")
"""The split that a row says, or has in the end, by the number that stands for it; 0 is none."""
TRAIN: Final = SIDES.index("train")
HELD_OUT: Final = SIDES.index("held_out")
_DIGEST: Final = 16

Truths = NDArray[np.bool_]
Numbers = NDArray[np.intp]
Sides = NDArray[np.int8]


def digest(conversation: object) -> bytes:
    """16 bytes that a conversation is known by; it is told apart by its `repr`."""
    return hashlib.blake2b(repr(conversation).encode(), digest_size=_DIGEST).digest()


class Places:
    """The places of rows, in order, 12 bytes for each."""

    def __init__(self, files: Mapping[int, RowPlace], file_of: NDArray[np.uint32], numbers: NDArray[np.uint64]) -> None:
        self._files = files
        """A place in each file."""
        self._file_of = file_of
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> RowPlace:
        return self._files[int(self._file_of[index])]._replace(number=int(self._numbers[index]))

    def __iter__(self) -> Iterator[RowPlace]:
        return map(self.__getitem__, range(len(self)))


class Facts:
    """What is held of rows in the order in which they are read; all arrays are by row."""

    def __init__(self) -> None:
        self._files: dict[int, RowPlace] = {}
        """A place in each file."""
        self._file_of = array("I")
        self._numbers = array("Q")
        self._said = bytearray()
        self._draws = array("I")
        self._ranks = array("I")
        self._digests = bytearray()
        self._earlier = bytearray()
        """Digests of the prompts that conversations answer on their way, the shortest of a conversation first."""
        self._owners = array("Q")
        """The rows whose conversations they are in."""

    def add(
        self, file: int, place: RowPlace, said: Split | None, prompts: Sequence[object], draw: int, rank: int
    ) -> None:
        """Keep what is needed of a row.

        Args:
            file: the number of its file, from 0.
            place: its place.
            said: the split that it says.
            prompts: those that its conversation answers on its way, the shortest first and itself last.
            draw: decides its side where nothing else does, 0 to 2³² − 1.
            rank: decides whether it is in a mixture, 0 to 2³² − 1.
        """
        *earlier, whole = prompts
        for prompt in earlier:
            self._owners.append(len(self._numbers))
            self._earlier += digest(prompt)
        self._files.setdefault(file, place)
        self._file_of.append(file)
        self._numbers.append(place.number)
        self._said.append(SIDES.index(said))
        self._draws.append(draw)
        self._ranks.append(rank)
        self._digests += digest(whole)

    @property
    def checksum(self) -> bytes:
        """Of all rows' conversations (`digest`), by which it is known whether another reading gives the same."""
        return hashlib.sha256(self._digests).digest()

    def places(self, rows: Truths) -> Places:
        """The places of some rows."""
        file_of, numbers = np.frombuffer(self._file_of, np.uint32), np.frombuffer(self._numbers, np.uint64)
        return Places(self._files, file_of[rows], numbers[rows])

    def place(self, row: int) -> RowPlace:
        """The place of a row."""
        return self._files[self._file_of[row]]._replace(number=self._numbers[row])

    def distinct(self, first: Numbers) -> Truths:
        """Which rows are the first of those that are the same."""
        distinct: Truths = first[: len(self._numbers)] == np.arange(len(self._numbers))
        return distinct

    def first_rows(self) -> Numbers:
        """For each row, and then for each earlier prompt, the first row that is this conversation.

        For a prompt that no row is, a number that is no row's.
        """
        digests = np.frombuffer(self._digests + self._earlier if self._earlier else self._digests, np.uint64)
        words = digests.reshape(-1, 2).T
        order = np.lexsort(words)  # stable: of those that are the same the first stays first, and rows before prompts
        begins = np.arange(len(order))
        same = np.logical_and.reduce([np.diff(word[order]) == 0 for word in words])
        begins[1:][same] = 0
        np.maximum.accumulate(begins, out=begins)
        first: Numbers = np.empty_like(order)
        first[order] = order[begins]
        return first

    def sides_said(self, first: Numbers) -> Sides:
        """By first row, the split that any of the rows that are the same says.

        Raises:
            InputError: two of them say different ones.
        """
        said, sides = np.frombuffer(self._said, np.int8), np.zeros(len(self._said), np.int8)
        saying = np.flatnonzero(said)
        sides[first[saying[::-1]]] = said[saying[::-1]]  # from the last, so that the first that says one counts
        differing = saying[sides[first[saying]] != said[saying]]
        if differing.size:
            row = int(differing[0])
            kept = int(first[row])
            splits = f"its split is {SIDES[said[row]]} here and {SIDES[sides[kept]]} there"
            where = _where(self.place(kept))
            raise self.place(row).error(f"is the same prompt as in {where}, but {splits}; remove one of the two")
        return sides

    def mixed(self, kept: Truths, files: Sequence[DataFile]) -> Truths:
        """Of the rows that are kept, those of a mixture by the files' weights."""
        if not any(file.weight for file in files):
            return kept
        file_of, ranks = np.frombuffer(self._file_of, np.uint32), np.frombuffer(self._ranks, np.uint32)
        paths = [file.path for file in files]
        by_file = []
        for path in paths:
            same = [number for number, other in enumerate(paths) if other == path]
            by_file.append(np.flatnonzero(kept & np.isin(file_of, same)))
        chosen = np.zeros_like(kept)
        amounts = mixture([len(rows) for rows in by_file], [file.weight for file in files])
        for rows, amount in zip(by_file, amounts, strict=True):
            chosen[rows[np.argsort(ranks[rows], kind="stable")][: int(amount + 1e-9)]] = True
        return chosen

    def goes_on(self, first: Numbers, kept: Truths) -> tuple[Numbers, Numbers]:
        """Pairs of rows that are kept: the one goes on from the other with its answer; in order, the shortest first."""
        rows, before = np.frombuffer(self._owners, np.uint64).astype(np.intp), first[len(kept) :]
        there = before < len(kept)
        there[there] = kept[before[there]] & kept[rows[there]]
        return rows[there], before[there]

    def sides_that_follow(self, sides: Sides, goes_on: tuple[Numbers, Numbers]) -> Sides:
        """The splits that rows say, and of the others those that follow; 0 where it is to be drawn.

        What goes on from a prompt that is held out is held out; what a conversation to train on goes on from is
        trained on.

        Raises:
            InputError: what is to be trained on goes on from a prompt that is held out.
        """
        rows, before = goes_on
        trained, held = sides[rows] == TRAIN, sides[before] == HELD_OUT
        if (wrong := np.flatnonzero(trained & held)).size:
            row, other = int(rows[wrong[0]]), int(before[wrong[0]])
            problem = f"is to be trained on and goes on from the prompt in {_where(self.place(other))}"
            raise self.place(row).error(f"{problem}, which is held out; give both the same split, or remove one")
        following = sides.copy()
        following[rows[held]] = HELD_OUT
        following[before[trained]] = TRAIN
        return np.where(sides, sides, following)

    def sides_by_number(
        self, kept: Truths, sides: Sides, goes_on: tuple[Numbers, Numbers], held_out: int
    ) -> tuple[Sides, int]:
        """The split of each row that is kept, so that so many are held out, or one family more.

        Conversations that go on from one prompt have its place in the draw, and so one side.

        Returns:
            The splits, and how many rows are missing to be held out.
        """
        is_open, places = kept & (sides == 0), np.frombuffer(self._draws, np.uint32).copy()
        rows, before = goes_on
        both = is_open[rows] & is_open[before]
        rows, before = rows[both][::-1], before[both][::-1]  # from the last, so that the shortest counts
        places[rows] = np.frombuffer(self._draws, np.uint32)[before]
        drawn = places[is_open]
        missing = held_out - int(np.count_nonzero(sides[kept] == HELD_OUT))
        if 0 < missing <= len(drawn):
            held = drawn <= np.partition(drawn, missing - 1)[missing - 1]
        else:
            held = np.full(len(drawn), missing > 0)
        drawn_sides = np.where(kept, sides, np.int8(0))
        drawn_sides[is_open] = np.where(held, HELD_OUT, TRAIN)
        return drawn_sides, missing - len(drawn)

    def sides_by_share(self, kept: Truths, sides: Sides) -> Sides:
        """The split of each row that is kept; one that nothing decides is held out where its draw is 1."""
        held = np.frombuffer(self._draws, np.uint32) == 1
        drawn = np.where(held, np.int8(HELD_OUT), np.int8(TRAIN))
        return np.where(kept, np.where(sides, sides, drawn), np.int8(0))


def _where(place: RowPlace) -> str:
    return f"{place.unit} {place.number}"
