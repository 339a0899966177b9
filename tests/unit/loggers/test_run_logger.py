import pytest

from scaledl.loggers.base import told


def test_an_error_of_a_log_becomes_a_line_and_a_stop_by_hand_does_not() -> None:
    with pytest.warns(UserWarning, match=r"^the log was not ended: OSError no room$"), told("the log was not ended"):
        raise OSError("no room\nmore")
    with pytest.raises(KeyboardInterrupt), told("the log was not ended"):
        raise KeyboardInterrupt
