from torch import nn

from scaledl.model_text import describe


def test_equal_modules_in_a_row_are_one_line_with_the_parameters_of_each() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)), nn.Linear(3, 1), nn.ReLU())
    lines = [line.split() for line in describe(model).splitlines()]
    assert lines == [
        ["model", "Sequential", str(4 * 12 + 4)],
        ["0-3,", "each", "Linear", "12"],
        ["4", "Linear", "4"],
        ["5", "ReLU", "0"],
    ]


def test_it_goes_no_deeper_than_asked() -> None:
    assert len(describe(nn.Sequential(nn.Sequential(nn.Linear(1, 1))), depth=1).splitlines()) == 2
