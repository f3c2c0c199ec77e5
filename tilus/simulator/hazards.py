"""What can go wrong in a running kernel: the table of kinds, and the record of one occurrence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KINDS: dict[str, str] = {
    "out-of-bounds": "an access outside every allocation, or past the end of one",
    "misaligned": "an address that is not a multiple of the access size",
    "uninitialized-register": "a register is read that no instruction wrote on this path",
    "uninitialized-shared": "shared memory is read that nobody wrote",
    "shared-race": "two threads of a block (or cluster) touch the same shared bytes, one writes, nothing orders them",
    "global-race": "two threads touch the same global bytes, one writes, nothing orders them",
    "async-read": "the target of an asynchronous copy is read before the wait that makes it visible",
    "async-overwrite": "the target or source of an asynchronous copy is written before the wait that ends the copy",
    "async-pending": "a kernel ends while asynchronous work into registers or shared memory is outstanding",
    "missing-proxy-fence": "generic-proxy accesses and async-proxy accesses meet without `fence.proxy.async`",
    "missing-wgmma-fence": "registers of a `wgmma` are touched without `wgmma.fence` or before `wgmma.wait_group`",
    "barrier-divergence": "threads of a warp disagree on a warp-wide barrier, or ended before one of the whole block",
    "barrier-count": "a barrier's thread count is no multiple of 32, differs among its participants, or can't be met",
    "mbarrier-misuse": "an mbarrier is used with no init ordered before, overwritten, over-arrived or miscounted",
    "deadlock": "no warp can go on",
    "setmaxnreg": "a register count or a pairing that the instruction does not allow",
    "illegal-descriptor": "a matrix descriptor, tensor map or bulk-copy operand that the hardware rejects",
    "illegal-instruction": "an operand value that the ISA leaves undefined (a lane mask without the lane itself, say)",
    "trap": "the kernel executed `trap`",
    "assert": "the kernel called `__assertfail`",
}
"""Every kind of hazard and what it means; the keys are stable."""


@dataclass(frozen=True)
class Hazard:
    """One hazard: where it happened and what was wrong.

    ``block`` and ``thread`` are coordinates (x, y, z), ``address`` a byte address (shared addresses are offsets
    in the block's window), ``ptx_line`` the line of the PTX text, ``source`` the (file, line) of its line table.
    """

    kind: str
    message: str
    kernel: str
    block: tuple[int, int, int] | None
    thread: tuple[int, int, int] | None
    address: int | None
    ptx_line: int | None
    source: tuple[str, int] | None
    instruction: str = ""

    def __str__(self) -> str:
        where = []
        if self.source is not None:
            where.append(f"{self.source[0]}:{self.source[1]}")
        if self.ptx_line is not None:
            where.append(f"PTX line {self.ptx_line}")
        who = [f"kernel {self.kernel}"]
        if self.block is not None:
            who.append(f"block {self.block}")
        if self.thread is not None:
            who.append(f"thread {self.thread}")
        text = f"{self.kind}: {self.message} [{', '.join(who)}]"
        if where:
            text += f" at {', '.join(where)}"
        if self.instruction:
            text += f": {self.instruction}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """The hazard as plain data."""
        return asdict(self)


class Stop(Exception):
    """Ends a launch whose report already holds the reason."""


def place_of(instruction: Any) -> str:
    """Words for the place of an instruction, to follow a verb."""
    if instruction is None:
        return ""
    if instruction.source is not None:
        return f" at {instruction.source[0].rsplit('/', 1)[-1]}:{instruction.source[1]} (PTX line {instruction.line})"
    return f" at PTX line {instruction.line}"
