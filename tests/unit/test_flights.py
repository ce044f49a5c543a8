"""Real data as it is: what cannot be flown is counted, what cannot be read is told with file, field and limit."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bootstrap.demo import flights
from bootstrap.demo.flights import (
    AIRPORTS_FILE,
    CM_PER_DEGREE,
    FLIGHTS_FILE,
    DataFileBad,
    packaged,
    read_airports,
    read_file,
    read_flights,
)

HEADER = "month,day,carrier,flight,tailnum,origin,dest,dep_time,arr_time"
GOOD = "1,2,UA,15,N1,EWR,IAH,517,830"


def compressed(data: bytes) -> bytes:
    """The same bytes on every run: they are part of a test's name."""
    return gzip.compress(data, mtime=0)


@pytest.fixture(scope="module")
def airports() -> dict[str, flights.Airport]:
    return read_airports(packaged(AIRPORTS_FILE))


def month(*rows: str) -> bytes:
    return compressed("\n".join([HEADER, *rows, ""]).encode())


def test_the_packaged_week_is_whole(airports: dict[str, flights.Airport]) -> None:
    data = read_flights(packaged(FLIGHTS_FILE), airports)
    assert data.rows == 6_099
    assert len(data.flights) + sum(data.skipped.values()) == 6_099
    assert data.skipped == {"cancelled": 35, "no arrival": 3, "unknown airport": 181}
    assert list(data.flights) == sorted(data.flights)
    assert {flight.origin for flight in data.flights} == {"EWR", "JFK", "LGA"}


def test_coordinates_are_exact_integers(airports: dict[str, flights.Airport]) -> None:
    jfk = airports["JFK"]
    assert (jfk.x_cm, jfk.y_cm) == (
        -73_778_925 * CM_PER_DEGREE // 1_000_000,
        40_639_751 * CM_PER_DEGREE // 1_000_000,
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,2,UA,15,N1,EWR,IAH,,830", "cancelled"),
        ("1,2,UA,15,N1,EWR,IAH,NA,830", "cancelled"),
        ("1,2,UA,15,N1,EWR,IAH,517,", "no arrival"),
        ("1,2,UA,15,,EWR,IAH,517,830", "no tail number"),
        ("1,2,UA,15,N1,EWR,ZZZ,517,830", "unknown airport"),
        ("1,x,UA,15,N1,EWR,IAH,517,830", "malformed number"),
        ("1,2,UA,-5,N1,EWR,IAH,517,830", "malformed number"),
        (f"1,2,UA,{'9' * 5_000},N1,EWR,IAH,517,830", "malformed number"),  # more than int() takes
        ("1,2,U!,15,N1,EWR,IAH,517,830", "malformed code"),
        ("1,2,UA,15,n 1,EWR,IAH,517,830", "malformed code"),
        ("1,2,UA", "cancelled"),
    ],
)
def test_a_row_that_cannot_be_flown_is_counted(
    airports: dict[str, flights.Airport], row: str, reason: str
) -> None:
    data = read_flights(month(row, GOOD), airports)
    assert data.skipped == {reason: 1}
    assert len(data.flights) == 1


def test_plain_csv_is_read_too(airports: dict[str, flights.Airport]) -> None:
    for mark in ("", "\ufeff"):
        text = f"{mark}{HEADER}\n{GOOD}\n"
        assert len(read_flights(text.encode(), airports, "month.csv").flights) == 1


@pytest.mark.parametrize(
    ("data", "field", "why"),
    [
        (month(GOOD)[:-6], "gzip", "truncated"),
        (month(GOOD)[:-8] + bytes(8), "gzip", "damaged"),
        (f"{HEADER}\n{GOOD}\n".encode(), "gzip", "does not begin"),
        (compressed(b"month,day\n1,2\n"), "columns", "lacks carrier"),
        (compressed(b""), "columns", "lacks month"),
        (compressed(b"m" * 200_000 + b"\n"), "row 0", "field limit"),
        (compressed(f"{HEADER}\n{'m' * 200_000}\n".encode()), "row 1", "field limit"),
        (compressed(HEADER.encode() + b"\n\xff\xfe"), "text", "no UTF-8"),
    ],
)
def test_a_month_file_that_cannot_be_read_is_told(
    airports: dict[str, flights.Airport], data: bytes, field: str, why: str
) -> None:
    with pytest.raises(DataFileBad, match=why) as caught:
        read_flights(data, airports, "some/month.csv.gz")
    assert (caught.value.path, caught.value.field) == ("some/month.csv.gz", field)


@pytest.mark.parametrize(
    ("limit", "value", "field"), [("TEXT_BYTES_MAX", 80, "text"), ("ROWS_MAX", 1, "rows")]
)
def test_a_file_over_a_limit_names_it(
    airports: dict[str, flights.Airport],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    field: str,
) -> None:
    monkeypatch.setattr(flights, limit, value)
    with pytest.raises(DataFileBad, match=limit.lower()) as caught:
        read_flights(month(GOOD, GOOD), airports)
    assert caught.value.field == field


def test_a_gzip_bomb_ends_at_the_limit(
    airports: dict[str, flights.Airport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "TEXT_BYTES_MAX", 1 << 20)
    with pytest.raises(DataFileBad, match="text_bytes_max"):
        read_flights(compressed(bytes(50 << 20)), airports)


def test_a_file_that_is_too_large_or_absent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "FILE_BYTES_MAX", 10)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(DataFileBad, match="file_bytes_max"):
        read_file(tmp_path / "large")
    with pytest.raises(DataFileBad, match="No such file"):
        read_file(tmp_path / "absent")


@pytest.mark.parametrize("lat", ["north", "91.0", "NaN", "1e99", "1e999990", "1e9999999", "", "٣"])
def test_an_airport_off_the_globe_is_told(lat: str) -> None:
    with pytest.raises(DataFileBad, match="lat/lon of QQQ"):
        read_airports(f"faa,name,lat,lon\nQQQ,Nowhere,{lat},0\n".encode(), "airports.csv")
