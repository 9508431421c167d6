from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memback import units
from memback.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000000", 1_000_000),
        ("17B", 17),
        ("1KiB", 1024),
        ("1kb", 1000),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("0.1 TiB", 2**40 // 10),
        ("  3 PiB ", 3 * 2**50),
    ],
)
def test_sizes_are_read_in_powers_of_1024_and_of_1000(text: str, size: int) -> None:
    assert units.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1,5GB", "1e9", "1_000", "0x10", "١MiB", "1 MiB 2"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write it as 512MiB") as refusal:
        units.parse_bytes(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["512M", "3GiBs", "2 bytes"])
def test_an_unknown_unit_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="unknown unit .* use B, KiB, MiB"):
        units.parse_bytes(text)


@pytest.mark.parametrize("text", ["99999999PiB", "1" * 5000, "9" * 5000 + "KiB", "9" * 5000 + "." + "9" * 5000])
def test_a_size_beyond_all_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="larger than any memory") as refusal:
        units.parse_bytes(text)
    assert len(str(refusal.value)) < 300


def test_digits_that_make_no_difference_make_none() -> None:
    assert units.parse_bytes("0" * 5000 + "1.5" + "0" * 5000 + "KiB") == 1536
    with localcontext(prec=60):
        assert units.parse_bytes(f"{Decimal(1) / 2**50:f}PiB") == 1  # which has fifty digits after its point


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("007", 7), ("0", None), ("", None), ("-1", None), ("1.0", None), ("٣", None), ("9" * 18, 10**18 - 1)],
)
def test_a_count_is_a_whole_number_from_1_up(text: str, count: int | None) -> None:
    assert units.parse_count(text) == count
    assert units.parse_count("9" * 5000) is None


@given(st.integers(0, 2**62))
def test_the_long_form_holds_the_exact_bytes(size: int) -> None:
    exact = units.format_bytes(size).split(" B ")[0].replace(",", "")
    assert units.parse_bytes(exact) == size


@given(st.integers(0, 2**59))
def test_the_short_form_is_within_its_rounding(size: int) -> None:
    assert units.parse_bytes(units.format_bytes_short(size)) == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(
    ("size", "long", "short"),
    [
        (0, "0 B (0.00 MiB)", "0 B"),
        (512, "512 B (0.000488 MiB)", "512 B"),
        (40_960, "40,960 B (0.0391 MiB)", "40.00 KiB"),
        (34_273_280, "34,273,280 B (32.69 MiB)", "32.69 MiB"),
        (-34_273_280, "-34,273,280 B (-32.69 MiB)", "-32.69 MiB"),
        (2**30 - 1, "1,073,741,823 B (1,024.00 MiB)", "1.00 GiB"),
        (2**61, "2,305,843,009,213,693,952 B (2,199,023,255,552.00 MiB)", "2,048.00 PiB"),
    ],
)
def test_bytes_are_written_exactly_and_shortly(size: int, long: str, short: str) -> None:
    assert units.format_bytes(size) == long
    assert units.format_bytes_short(size) == short


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.2e-9, "4.20 ns"),
        (4.2e-6, "4.20 µs"),
        (0.0931, "93.1 ms"),
        (0.9996, "1.00 s"),
        (1.25, "1.25 s"),
        (9.996, "10.0 s"),
        (119.4, "119 s"),
        (125, "2 min 05 s"),
        (3_900, "1 h 05 min"),
    ],
)
def test_seconds_are_written_to_three_digits(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (1_500, "1.50 kFLOP"),
        (2_000_000_000, "2.00 GFLOP"),
        (10**21, "1,000 EFLOP"),
    ],
)
def test_flops_are_written_to_three_digits(flops: int, text: str) -> None:
    assert units.format_flops(flops) == text
