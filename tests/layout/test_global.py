"""Global layouts: symbolic strides, offsets as text and as numbers."""

from __future__ import annotations

from itertools import product

import pytest

from tilus.layout import GlobalLayout, LayoutError, Monomial


def test_a_contiguous_tensor_has_products_of_sizes_for_strides() -> None:
    layout = GlobalLayout.row_major("m", 4, "k")
    assert layout.strides == ("4*k", "k", 1)
    assert layout.expression(["i", "j", "l"]) == "i*4*k + j*k + l"
    assert layout.symbols == ("k", "m")


def test_offsets_of_a_bound_layout_enumerate_memory() -> None:
    layout = GlobalLayout.row_major("m", "n", 5).bind({"m": 2, "n": 3})
    assert layout.shape == (2, 3, 5)
    offsets = [layout.offset(index) for index in product(range(2), range(3), range(5))]
    assert offsets == list(range(30))


def test_column_major_has_the_first_dimension_fastest() -> None:
    layout = GlobalLayout.column_major("m", "n")
    assert layout.strides == (1, "m")
    assert layout.offset((2, 3), {"m": 10}) == 32


def test_dimensions_that_add_nothing_are_left_out() -> None:
    layout = GlobalLayout((1, "n", 4), ("n", 0, 1))
    assert layout.expression(["i", "j", "k"]) == "k"
    assert GlobalLayout((), ()).expression([]) == "0"
    assert [term.dim for term in layout.terms] == [2]


def test_the_same_product_is_written_in_one_way() -> None:
    assert GlobalLayout(("m", "n"), ("k * 2 * j", 1)) == GlobalLayout(("m", "n"), ("2*j*k", 1))
    assert Monomial.of("3*n*2*m") == Monomial(6, ("m", "n"))
    assert str(Monomial.of("1*n")) == "n"
    assert Monomial.of("0*n").evaluate({"n": 3}) == 0


def test_transpose_moves_strides_with_sizes() -> None:
    assert GlobalLayout.row_major("m", "n").transpose() == GlobalLayout.column_major("n", "m")


def test_divisors_come_from_what_is_known_of_symbols() -> None:
    assert Monomial.of("2*k*n").divisor({"k": 8}) == 16
    assert Monomial.of("k").divisor({}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalLayout(("m",), (1, 2)), "1 dimensions needs as many strides, found 2"),
        (lambda: GlobalLayout(("m+1",), (1,)), r"'m\+1' is not a product of integers and names"),
        (lambda: GlobalLayout((-1,), (1,)), "dimension 0 of a global layout has size -1"),
        (lambda: GlobalLayout.row_major("m", "n").offset((1, 1)), "the value of n is needed for n"),
        (lambda: GlobalLayout.row_major("m").expression(["i", "j"]), "expected 1 index names, found 2"),
    ],
)
def test_impossible_layouts_are_explained(make, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        make()
