"""Control flow by value: each function runs in plain Python and, traced with run-time arguments, on the interpreter."""

import numpy as np
import pytest

import tilus.lang as tilus
from tests.lang.support import operations, trace
from tilus.ir import ops
from tilus.lang import InlineFunction, Tensor, constexpr, float32, int32


@tilus.inline
def sum_of_odd(x, y):
    total = 0
    for i in range(x):
        if i % 2 == 0:
            continue
        total += i
    return total


@tilus.inline
def first_square_above(x, y):
    found = -1
    for i in range(100):
        if i * i > x:
            found = i
            break
    return found


@tilus.inline
def nested_exits(x, y):
    count = 0
    last = 0
    for i in range(x):
        for j in range(y):
            if j > i:
                break
            if (i + j) % 3 == 0:
                continue
            count += 10 * i + j
            last = j
        if count > 200:
            break
    return count, last


@tilus.inline
def ranges(x, y):
    a = 0
    for i in range(x, y):
        a = a * 3 + i
    b = 0
    for i in range(y, x, -1):
        b = b * 3 + i
    c = 0
    for i in range(y, -4, -3):
        c = c * 5 + i
    d = 0
    for i in range(x, y, 2):
        d = d * 7 + i
    return a, b, c, d


@tilus.inline
def loop_index_afterwards(x, y):
    i = -5
    for i in range(x):
        if i == y:
            break
    return i


@tilus.inline
def changed_index(x, y):
    total = 0
    for i in range(x):
        i = i * 2
        total += i
    return total


@tilus.inline
def swaps(x, y):
    a, b = x, y
    a, b = b, a
    for _ in range(x % 7):
        a, b = b, a + b
    (a, b), c = (b, a), a - b
    return a, b, c


@tilus.inline
def aliases(x, y):
    first = x
    second = first
    second = second + 1
    third = second
    second += y
    return first, second, third


@tilus.inline
def chained(x, y):
    a = 1 if 0 <= x < 10 else 0
    b = 1 if 10 > x > y >= -3 else 0
    c = 1 if x == y == 3 else 0
    d = 1 if 1 < 2 < x != y else 0
    return a, b, c, d


@tilus.inline
def floors(x, y):
    z = y if y != 0 else 4
    return x // z, x % z, x // 4, x % 4, x // -3, x % -3, 17 // z, -17 % z


@tilus.inline
def logic(x, y):
    a = 1 if x > 3 and y > 3 else 0
    b = 1 if x > 3 or y > 3 else 0
    c = 1 if not x > 3 else 0
    d = 1 if (x > 3 or y > 3) and not (x > 3 and y > 3) else 0
    e = 1 if x and y else 0
    f = 1 if x > 3 and True else 0
    return a, b, c, d, e, f


@tilus.inline
def branches(x, y):
    if x < 3:
        a = 1
    elif x < 6:
        a = 2
    elif y < 2:
        a = 3
    else:
        a = 4
    b = a
    if y > x:
        b = b * 10
        if y > 2 * x:
            a = b
    return a, b


@tilus.inline
def collatz(x, y):
    n = x * x + 1
    steps = 0
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
        if steps > 50:
            break
    return n, steps


@tilus.inline
def endless(x, y):
    i = 0
    total = 0
    while True:
        i += 1
        if i % 3 == 0:
            continue
        if i > x:
            break
        total += i
    return i, total


@tilus.inline
def carried_tuple(x, y):
    pair = (0, 1)
    for i in range(y % 9):
        pair = (pair[1], pair[0] + pair[1] + i)
    return pair


@tilus.inline
def early_returns(x, y):
    if x > 8:
        return x
    if y > 8:
        if x > 4:
            return -x
        y = y - 3
    else:
        return y * 2
    return y


@tilus.inline
def bits(x, y):
    s = y % 8
    return x & y, x | y, x ^ y, ~x, x << s, x >> s, 1 << s, -x


@tilus.inline
def extremes(x, y):
    return min(x, y), max(x, y), max(x, 3, y), abs(x), min(x, 2)


@tilus.inline
def unrolled_break(x, y):
    total = 0
    for i in tilus.static_range(8):
        if i == 5:
            break
        if i == 2:
            continue
        if x > i:
            total += i
    for i, z in enumerate((x, y)):
        total += (i + 1) * z
    return total


@tilus.inline
def inner_while_in_for(x, y):
    total = 0
    for i in range(x):
        j = i
        while j > 0:
            j -= 2
            if j == y:
                break
            total += j
        else_value = j
        total += else_value
    return total


@tilus.inline
def value_set_before_break(x, y):
    value = 0
    for i in range(x):
        if i > 2:
            if y > 2:
                value = i * 10
            break
        value = 1
    return value


@tilus.inline
def value_set_before_continue(x, y):
    state = 0
    total = 0
    for i in range(x):
        total += state
        if i % 2 == 0:
            if y > i:
                state = i
            continue
        state = 1
    return total


@tilus.inline
def sum_over(indices):
    total = 0
    for i in indices:
        total += i
    return total


@tilus.inline
def named_ranges(x, y):
    whole = range(x)
    fixed = range(2, 9, 3)
    return sum_over(whole) + sum_over(fixed) + fixed[1] + len(fixed) + sum_over((x, y)) + sum_over(
        range(y, x)
    ), 5 in fixed


FUNCTIONS = [
    value for value in list(globals().values()) if isinstance(value, InlineFunction) and value is not sum_over
]
INPUTS = [(0, 0), (1, 3), (3, 3), (4, 12), (7, 2), (9, 1), (5, 9), (12, 20)]


def count_results(function) -> int:
    result = function(5, 5)
    return len(result) if isinstance(result, tuple) else 1


def evaluate(out: Tensor[int32, "n"], x: int32, y: int32, *, function: constexpr):
    tilus.grid(1)
    results = function(x, y)
    if not isinstance(results, tuple):
        results = (results,)
    for position, value in enumerate(results):
        tilus.store(out, value, position)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_control_flow_means_what_python_means(execute, function):
    kernel = trace(evaluate, function=function)
    assert operations(kernel, ops.StoreGlobal)
    for x, y in INPUTS:
        expected = function(x, y)
        expected = expected if isinstance(expected, tuple) else (expected,)
        out = np.full(len(expected), 777, np.int32)
        execute(evaluate, out, x, y, function=function)
        assert out.tolist() == list(expected), (x, y)


NEGATIVE_INPUTS = [(-7, 3), (-8, -3), (7, -3), (-1, 5)]


@pytest.mark.parametrize(
    "function", [floors, chained, bits, extremes, logic, branches, ranges, aliases], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("inputs", NEGATIVE_INPUTS, ids=str)
def test_negative_numbers_mean_what_python_means(execute, function, inputs):
    expected = function(*inputs)
    out = np.zeros(len(expected), np.int32)
    execute(evaluate, out, *inputs, function=function)
    assert out.tolist() == list(expected)


def returns_early(out: Tensor[int32, "n"], x: int32):
    tilus.grid(1)
    tilus.store(out, 1, 0)
    if x > 5:
        tilus.store(out, 2, 0)
        return
    for i in range(10):
        if i == x:
            tilus.store(out, 100 + i, 1)
            return
        if i > 3:
            return
    tilus.store(out, 3, 0)


@pytest.mark.parametrize(("x", "expected"), [(9, [2, 0]), (2, [1, 102]), (5, [1, 0]), (4, [1, 104])])
def test_return_leaves_the_kernel_from_any_depth(execute, x, expected):
    out = np.zeros(2, np.int32)
    execute(returns_early, out, x)
    assert out.tolist() == expected


def returns_in_both(out: Tensor[int32, "n"], x: int32):
    tilus.grid(1)
    if x > 5:
        tilus.store(out, 2, 0)
        return
    else:
        tilus.store(out, 3, 0)
        return
    tilus.store(out, 4, 0)


@pytest.mark.parametrize(("x", "expected"), [(9, 2), (2, 3)])
def test_statements_after_a_certain_return_do_not_run(execute, x, expected):
    out = np.zeros(1, np.int32)
    execute(returns_in_both, out, x)
    assert out[0] == expected


def tiles_in_branches(out: Tensor[float32, "n"], x: int32):
    tilus.grid(1)
    tile = tilus.zeros(8)
    saved = tile
    for i in range(4):
        if i == x:
            tile = tile * 2.0
        elif i > x:
            tile += tilus.arange(8).to(float32)
        else:
            tile = tile + 1.0
    tilus.store(out, tile, 0)
    tilus.store(out, saved, 8)


@pytest.mark.parametrize("x", [0, 2, 7])
def test_tiles_pass_through_loops_and_branches(execute, x):
    expected = np.zeros(8, np.float32)
    for i in range(4):
        expected = expected * 2 if i == x else expected + np.arange(8) if i > x else expected + 1
    out = np.full(16, -1, np.float32)
    execute(tiles_in_branches, out, x)
    assert out[:8].tolist() == expected.tolist()
    assert out[8:].tolist() == [0] * 8


def effects_are_skipped(out: Tensor[int32, "n"], x: int32):
    tilus.grid(1)
    if x > 0 and tilus.atomic_add(out, 1, 0) == 0:
        tilus.store(out, 5, 1)
    if x > 0 or tilus.atomic_add(out, 10, 0) == 0:
        tilus.store(out, 6, 2)


@pytest.mark.parametrize(("x", "expected"), [(1, [1, 5, 6]), (0, [10, 0, 6])])
def test_and_and_or_skip_effects_as_python_does(execute, x, expected):
    out = np.zeros(3, np.int32)
    execute(effects_are_skipped, out, x)
    assert out.tolist() == expected


def persistent(out: Tensor[int32, "n"], n: int32):
    tilus.grid(4)
    for i in range(tilus.block_id(), n, tilus.grid_dim(0)):
        tilus.store(out, i * i, i)


def test_a_grid_stride_loop_covers_all(execute):
    out = np.zeros(11, np.int32)
    execute(persistent, out, 11)
    assert out.tolist() == [i * i for i in range(11)]


def only_live_names(out: Tensor[int32, "n"], x: int32):
    tilus.grid(1)
    scratch = tilus.zeros(4)
    total = 0
    for i in range(x):
        scratch = tilus.zeros((8, 8))
        other = i
        total += other
    tilus.store(out, total, 0)


def test_a_loop_carries_only_names_that_are_read_later():
    (loop,) = operations(trace(only_live_names), ops.For)
    assert [value.name for value in loop.body.args] == ["i", "total"]
    assert [value.name for value in loop.results] == ["total"]


def constant_if(out: Tensor[int32, "n"], *, flag: constexpr):
    tilus.grid(1)
    if flag:
        value = 1
    else:
        value = undefined_name
    tilus.store(out, value, 0)


def test_a_condition_known_at_compile_time_leaves_no_branch():
    kernel = trace(constant_if, flag=True)
    assert operations(kernel, ops.If) == []
    assert 1 in [made.value for made in operations(kernel, ops.Constant)]


def count_with_int64(out: Tensor[int32, "n"], n: int32):
    tilus.grid(1)
    total: tilus.int64 = 0
    for i in range(n):
        total = total + i * 1_000_000_000_000
    tilus.store(out, (total // 1_000_000_000_000).to(int32), 0)


def test_a_literal_that_needs_64_bits_makes_them(execute):
    out = np.zeros(1, np.int32)
    execute(count_with_int64, out, 5)
    assert out[0] == 10
