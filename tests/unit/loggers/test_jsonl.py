"""metrics.jsonl: whole lines, exact numbers, and after a resume each step once."""

import json
import math
import random
import struct
from pathlib import Path

import pytest

from scaledl.loggers.jsonl import JsonlLogger, read, rewind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def log(path: Path, *steps: int) -> None:
    logger = JsonlLogger(path)
    for step in steps:
        logger.log_metrics({"train/loss": step / 3}, step=step)
    logger.finalize("success")


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(path: Path) -> None:
    logger = JsonlLogger(path)
    assert not path.exists()  # a run that fails before its first step leaves no empty log
    logger.log_metrics({"train/loss": 0.5, "lr": 1e-3}, step=1)
    assert path.read_text() == '{"step": 1, "train/loss": 0.5, "lr": 0.001}\n'
    logger.log_metrics({"val/loss": 2}, step=1)
    assert len(read(path)) == 2


def test_a_logger_appends_after_it_was_closed_and_to_what_is_there(path: Path) -> None:
    log(path, 1, 2)
    log(path, 3)
    logger = JsonlLogger(path)
    for step in (4, 5):  # fit closes it, test goes on
        logger.log_metrics({"x": 1.0}, step=step)
        logger.finalize("success")
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]


def test_floats_come_back_bit_for_bit_even_through_a_rewind(path: Path) -> None:
    draw = random.Random(0)
    values = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(500)]
    values = [value for value in values if math.isfinite(value)] + [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308]
    logger = JsonlLogger(path)
    for step, value in enumerate(values):
        logger.log_metrics({"x": value}, step=step)
    rewind(path, len(values))
    assert [struct.pack("<d", line["x"]) for line in read(path)] == [struct.pack("<d", value) for value in values]


def test_what_is_not_finite_is_null_because_json_has_no_word_for_it(path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    JsonlLogger(path).log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, step=3)
    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 3, "a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize("torn", ['{"step": 9, "train/lo', "{", '{"step": 9}garbage', "\0\0\0\0", '{"step": 9, "x": '])
def test_a_torn_line_is_left_out_and_rewound_away(path: Path, torn: str) -> None:
    log(path, 1, 2, 3)
    whole = path.read_text()
    with open(path, "a") as file:
        file.write(torn)
    assert [line["step"] for line in read(path)] == [1, 2, 3]
    rewind(path, 9)
    assert path.read_text() == whole


def test_rewind_drops_what_came_after_the_step_and_keeps_the_rest_byte_for_byte(path: Path) -> None:
    log(path, 1, 2)
    kept = path.read_text()
    log(path, 3, 4)
    rewind(path, 2)
    assert path.read_text() == kept
    log(path, 3)
    assert [line["step"] for line in read(path)] == [1, 2, 3]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_log_that_is_not_there_is_empty_and_not_made_by_a_rewind(path: Path) -> None:
    assert read(path) == []
    rewind(path, 5)
    assert not path.exists()
