"""Random kernels compute the same after canonicalisation, and come back from their text."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.ir.strategies import DTYPES, SHAPE, kernels
from tilus.ir import Kernel
from tilus.ir.interpreter import run
from tilus.ir.numerics import storage
from tilus.ir.parser import parse_kernel
from tilus.ir.printer import print_kernel
from tilus.ir.verifier import verify
from tilus.passes.canonicalise import canonicalise
from tilus.passes.dead_code import eliminate_dead_code

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outputs(kernel: Kernel, scalars: tuple[int, float, bool]) -> list[bytes]:
    made = [np.zeros((64, *SHAPE), storage(d)) for d in DTYPES]
    run(kernel, [*scalars, *made])
    for array in made:
        if array.dtype.kind == "f":
            # NaNs are alike.
            array[np.isnan(array)] = np.nan
    return [array.tobytes() for array in made]


arguments = st.tuples(
    st.integers(-(2**31), 2**31 - 1), st.sampled_from([0.0, -0.0, 1.5, -3.0]), st.booleans()
)


@quick
@given(kernels(), arguments)
def test_canonicalisation_keeps_what_a_kernel_computes(kernel: Kernel, scalars: tuple[int, float, bool]):
    verify(kernel)
    simpler = canonicalise(kernel)
    verify(simpler)
    note(print_kernel(kernel))
    note(print_kernel(simpler))
    assert outputs(simpler, scalars) == outputs(kernel, scalars)
    assert canonicalise(simpler) is simpler


@quick
@given(kernels(), arguments)
def test_removing_dead_code_keeps_what_a_kernel_computes(kernel: Kernel, scalars: tuple[int, float, bool]):
    smaller = eliminate_dead_code(kernel)
    verify(smaller)
    assert outputs(smaller, scalars) == outputs(kernel, scalars)
    assert eliminate_dead_code(smaller) is smaller


@quick
@given(kernels(), arguments)
def test_a_kernel_comes_back_from_its_text(kernel: Kernel, scalars: tuple[int, float, bool]):
    text = print_kernel(kernel)
    again = parse_kernel(text)
    verify(again)
    assert print_kernel(again) == text
    assert outputs(again, scalars) == outputs(kernel, scalars)
