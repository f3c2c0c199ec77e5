"""The order in which bits of narrow elements may be stored so that a cast needs the fewest instructions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Arrangement:
    """A permutation of the bits of a group of elements, and bits that are stored inverted.

    In natural order bit b of element i is bit ``i * bits + b`` of the group, little end first.

    Attributes
    ----------
    bits : int
        Bits of an element.
    places : tuple of int
        Bit p of the stored group is bit ``places[p]`` of the natural one. A group is whole 32-bit words.
    flip : tuple of int
        Words that are XORed to the permuted words of a group.
    """

    bits: int
    places: tuple[int, ...]
    flip: tuple[int, ...]

    @property
    def words(self) -> int:
        """32-bit words of a group."""
        return len(self.places) // 32

    @property
    def elements(self) -> int:
        """Elements of a group."""
        return len(self.places) // self.bits

    @cached_property
    def order(self) -> tuple[int, ...] | None:
        """The element at each position of a group, if whole elements move and nothing is inverted, else None."""
        if any(self.flip):
            return None
        bits, places = self.bits, self.places
        order = tuple(places[p] // bits for p in range(0, len(places), bits))
        whole = all(place == order[p // bits] * bits + p % bits for p, place in enumerate(places))
        return order if whole else None

    def store(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return words of the natural order as they are stored; the last axis holds whole groups."""
        import numpy as np

        return self._move(words, np.asarray(self.places)) ^ self._flips(words)

    def load(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return stored words in natural order: the inverse of `store`."""
        import numpy as np

        return self._move(words ^ self._flips(words), np.argsort(np.asarray(self.places)))

    def _flips(self, words: Any) -> Any:
        import numpy as np

        return np.resize(np.asarray(self.flip, np.uint32), words.shape[-1])

    def _move(self, words: Any, places: Any) -> Any:
        import numpy as np

        if words.shape[-1] % self.words:
            raise ValueError(
                f"{words.shape[-1]} words are not whole groups: give a multiple of {self.words} words"
            )
        data = np.ascontiguousarray(words, "<u4").view(np.uint8)
        bits = np.unpackbits(data, axis=-1, bitorder="little")
        groups = bits.reshape(*words.shape[:-1], -1, len(self.places))[..., places]
        packed = np.packbits(groups.reshape(bits.shape), axis=-1, bitorder="little")
        return np.ascontiguousarray(packed).view("<u4")


def element_order(bits: int, order: tuple[int, ...]) -> Arrangement:
    """Return the arrangement that stores whole elements in an order.

    Parameters
    ----------
    bits : int
        Bits of an element.
    order : tuple of int
        The element at each position of a group of whole 32-bit words.
    """
    if sorted(order) != list(range(len(order))) or len(order) * bits % 32:
        raise ValueError(
            f"{order} is no order of elements of {bits} bits: give each index of a group of whole 32-bit words once"
        )
    places = tuple(element * bits + bit for element in order for bit in range(bits))
    return Arrangement(bits, places, (0,) * (len(places) // 32))
