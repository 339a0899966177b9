from pathlib import Path

from scaledl.tables import final_table


def test_the_summary_of_a_run_whose_loss_was_not_finite_can_be_shown_again() -> None:
    summary = {"metrics": {"val/loss": None, "val/acc": 0.5}, "best": None, "throughput": {}}
    table = final_table(summary | {"total_seconds": 1.0, "train_seconds": None}, Path("run"), "completed before")
    assert list(table.columns[1].cells)[:2] == ["not finite", "0.5000"]
