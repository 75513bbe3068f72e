# SPDX-License-Identifier: Apache-2.0
"""Are lengths right for every dtype and size, and do copies come back to the bit?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_sam import SAM
from hf_sam.vectors.flat import global_dot
from hf_sam.vectors.vectors import Ascent, accumulation_dtype, global_norm, restore_, snapshot
from tests.compare import INTEGERS, bits, same_bits
from tests.looped import looped

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", FLOATS)
# Sums are taken in float32 for every dtype but float64.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5}


def norm_in_numpy(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float((t.double().numpy() ** 2).sum()) for t in tensors))


def tensors_of(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> list[Tensor]:
    return [torch.randn(shape).to(dtypes[i % len(dtypes)]) for i, shape in enumerate(shapes)]


SHAPES = [(64, 32), (64,), (), (3, 5, 7), (0,), (1000, 11)]
MIXES = [*([d] for d in FLOATS), [torch.float32, torch.bfloat16], [torch.float16, torch.bfloat16], FLOATS]


# ----------------------------------------------------------------------------------------------------------------------
# global_norm and dot
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtypes", MIXES, ids=str)
def test_the_norm_is_that_of_one_long_vector(dtypes: list[torch.dtype]) -> None:
    tensors = tensors_of(SHAPES, dtypes)
    tolerance = TOLERANCE[accumulation_dtype(tensors)]
    assert global_norm(tensors).item() == pytest.approx(norm_in_numpy(tensors), rel=tolerance)


@pytest.mark.parametrize("dtypes", MIXES, ids=str)
def test_the_norm_has_no_dimension_and_the_dtype_it_was_summed_in(dtypes: list[torch.dtype]) -> None:
    norm = global_norm(tensors_of(SHAPES, dtypes))
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_norm_of_ten_million_elements_is_right(dtype: torch.dtype) -> None:
    tensors = [torch.full((10_000, 1000), 0.01, dtype=dtype)]
    expected = math.sqrt(1e7) * tensors[0][0, 0].double().item()
    assert global_norm(tensors).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_dot_product_of_ten_million_elements_is_right(dtype: torch.dtype) -> None:
    tensors = [torch.full((10_000, 1000), 0.01, dtype=dtype)]
    expected = 1e7 * tensors[0][0, 0].double().item() ** 2
    assert global_dot(tensors, tensors).item() == pytest.approx(expected, rel=1e-4)


@every_dtype
def test_the_norm_of_the_largest_numbers_of_16_bits_does_not_overflow(dtype: torch.dtype) -> None:
    tensors = [torch.full((1000,), 60000.0, dtype=dtype)]
    assert global_norm(tensors).item() == pytest.approx(norm_in_numpy(tensors), rel=1e-6)


@every_dtype
def test_the_norm_of_the_smallest_numbers_of_16_bits_does_not_vanish(dtype: torch.dtype) -> None:
    tensors = [torch.full((1000,), 6e-8, dtype=dtype)]
    assert global_norm(tensors).item() == pytest.approx(norm_in_numpy(tensors), rel=1e-6)


@looped
@pytest.mark.parametrize("magnitude", [1e-18, 1e-9, 1e9, 1e18])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_norm_is_right_at_any_magnitude_whose_square_float32_holds(dtype: torch.dtype, magnitude: float) -> None:
    tensors = [torch.full((100,), magnitude, dtype=dtype)]
    assert global_norm(tensors).item() == pytest.approx(norm_in_numpy(tensors), rel=1e-5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_bad_element_makes_the_norm_bad(bad: float) -> None:
    assert not math.isfinite(global_norm([torch.ones(5), torch.tensor([1.0, bad])]).item())


def test_the_norm_of_a_strided_view_counts_only_what_is_seen() -> None:
    assert global_norm([torch.arange(10.0)[::3], torch.ones(3, 4).t()]).item() == pytest.approx(math.sqrt(126 + 12))


@pytest.mark.parametrize("dtypes", MIXES, ids=str)
def test_the_dot_product_is_that_of_two_long_vectors(dtypes: list[torch.dtype]) -> None:
    left, right = tensors_of(SHAPES, dtypes), tensors_of(SHAPES, dtypes[::-1])
    expected = sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
    size = norm_in_numpy(left) * norm_in_numpy(right)
    assert global_dot(left, right).item() == pytest.approx(
        expected, abs=TOLERANCE[accumulation_dtype(left + right)] * size
    )


def test_the_dot_product_of_lists_of_different_lengths_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        global_dot([torch.ones(2)], [torch.ones(2), torch.ones(2)])


reproducible = settings(max_examples=50, deadline=None, derandomize=True, database=None)
vectors = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


@reproducible
@given(values=vectors, cut=st.integers(0, 30))
def test_the_norm_does_not_depend_on_where_the_vector_is_cut(values: list[float], cut: int) -> None:
    whole = torch.tensor(values, dtype=torch.float64)
    parts = global_norm([whole[:cut], whole[cut:]]).item()
    assert parts == pytest.approx(float(np.linalg.norm(whole.numpy())), rel=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# A direction of a given length
# ----------------------------------------------------------------------------------------------------------------------
def apply(vectors: list[Tensor], length: float) -> Ascent:
    """Return the ascent along `vectors`, which are kept."""
    return SAM().ascend(vectors, snapshot(vectors), length)


@looped
@pytest.mark.parametrize("length", [0.0, 1e-4, 0.05, 10.0])
@every_dtype
def test_scaled_vectors_have_the_length_asked_for(dtype: torch.dtype, length: float) -> None:
    vectors = tensors_of([(40, 30), (40,)], [dtype])
    ascent = apply(vectors, length)
    rounding = {torch.bfloat16: 2e-2, torch.float16: 2e-2}.get(dtype, 1e-5)
    assert ascent.usable
    assert global_norm(ascent.epsilon).item() == pytest.approx(length, rel=rounding)


@looped
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1.0, 100.0])
@every_dtype
def test_the_length_does_not_depend_on_how_long_the_vectors_were(dtype: torch.dtype, size: float) -> None:
    vectors = [torch.full((100,), size, dtype=dtype), torch.full((200,), size, dtype=dtype)]
    ascent = apply(vectors, 0.05)
    assert global_norm(ascent.epsilon).item() == pytest.approx(0.05, rel=1e-2)


@pytest.mark.parametrize("size", [6e-8, 60000.0])
def test_the_scale_itself_may_leave_the_range_of_float16(size: float) -> None:
    vectors = [torch.full((10_000,), size, dtype=torch.float16)]
    ascent = apply(vectors, 1.0)
    assert ascent.usable
    assert global_norm(ascent.epsilon).item() == pytest.approx(1.0, rel=1e-2)


@reproducible
@given(values=vectors, length=st.one_of(st.just(0.0), st.floats(1e-6, 100)), scale=st.floats(1e-10, 1e10))
def test_a_scaled_vector_is_parallel_and_as_long_as_asked(values: list[float], length: float, scale: float) -> None:
    vector = torch.tensor(values, dtype=torch.float64) * scale
    ascent = apply([vector], length)
    if ascent.usable:
        torch.testing.assert_close(ascent.epsilon[0] * global_norm([vector]), vector * length, rtol=1e-10, atol=0)
    else:
        assert not ascent.epsilon[0].any()


@looped
@pytest.mark.parametrize("value", [0.0, float("inf"), float("-inf"), float("nan")])
@every_dtype
def test_a_vector_without_a_length_becomes_zero_and_is_reported(dtype: torch.dtype, value: float) -> None:
    vectors = [torch.full((5,), value, dtype=dtype), torch.zeros(2, dtype=dtype)]
    ascent = apply(vectors, 0.05)
    assert not ascent.usable
    assert not any(v.any() for v in ascent.epsilon)


def test_one_bad_element_makes_every_vector_zero() -> None:
    vectors = [torch.ones(5), torch.tensor([1.0, float("nan")])]
    ascent = apply(vectors, 0.05)
    assert not ascent.usable
    assert not any(v.any() for v in ascent.epsilon)


# ----------------------------------------------------------------------------------------------------------------------
# snapshot and restore_
# ----------------------------------------------------------------------------------------------------------------------
def all_16_bit_patterns(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def special_patterns(dtype: torch.dtype) -> Tensor:
    """Return zeros of both signs, subnormals, infinities, and NaNs of both signs with payloads."""
    if dtype in (torch.bfloat16, torch.float16):
        return all_16_bit_patterns(dtype)
    width, exponent = (32, 0xFF << 23) if dtype == torch.float32 else (64, 0x7FF << 52)
    patterns = np.array([0, 1, 5, exponent, exponent | 1, exponent | 12345, exponent | 1 << 20], dtype=f"uint{width}")
    patterns = np.concatenate([patterns, patterns | np.array(1 << (width - 1), dtype=patterns.dtype)])
    return torch.from_numpy(patterns.view(f"int{width}")).view(dtype)


@every_dtype
def test_every_bit_pattern_comes_back(dtype: torch.dtype) -> None:
    tensor = special_patterns(dtype)
    before = bits([tensor])
    copies = snapshot([tensor])
    tensor.fill_(1.0)
    restore_([tensor], copies)
    assert same_bits(bits([tensor]), before)
    assert tensor.isnan().any()
    assert tensor.view(INTEGERS[tensor.element_size()]).unique().numel() == tensor.numel()


def test_mixed_dtypes_shapes_and_strides_come_back() -> None:
    tensors = [
        torch.randn(3, 4).t(), torch.randn(10)[::2], torch.tensor(3, dtype=torch.int64), torch.tensor([True, False]),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(5).half(), torch.empty(0),
    ]  # fmt: skip
    wanted = [t.clone() for t in tensors]
    copies = snapshot(tensors)
    for t in tensors:
        t.zero_()
    restore_(tensors, copies)
    assert all(torch.equal(t, w) for t, w in zip(tensors, wanted, strict=True))


def test_restoring_writes_into_the_same_storage() -> None:
    tensor = torch.nn.Parameter(torch.randn(4))
    copies, pointer = snapshot([tensor]), tensor.data_ptr()
    restore_([tensor], copies)
    assert tensor.data_ptr() == pointer
    assert copies[0].data_ptr() != pointer


def test_nothing_to_restore_is_no_error() -> None:
    restore_([], snapshot([]))
