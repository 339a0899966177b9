from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine

from scaledl.data.table import Table

ROWS = 60


def table(**changes: list) -> dict[str, list]:
    columns = {
        "age": [float(i) for i in range(ROWS)],
        "count": list(range(0, 2 * ROWS, 2)),
        "colour": [("red", "green", "blue")[i % 3] for i in range(ROWS)],
        "smokes": [i % 2 == 0 for i in range(ROWS)],
        "kind": [("a", "b")[i % 2] for i in range(ROWS)],
    }
    return columns | changes


def written(folder: Path, columns: dict[str, list], name: str = "t.csv") -> str:
    path = folder / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pa.table(columns), path)
    else:
        lines = [",".join(columns)]
        lines += [",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def make(**settings: Any) -> Table:
    data = Table(8, 8, **settings)
    data.prepare()
    return data


def everything(data: Table) -> dict[str, dict[str, torch.Tensor]]:
    return {name: split.__getitems__(np.arange(len(split))) for name, split in data.splits()}


@pytest.mark.parametrize(
    ("name", "facts", "rows"),
    [
        ("iris", (4, 3, 3), 150),
        ("wine", (13, 3, 3), 178),
        ("breast_cancer", (30, 2, 2), 569),
        ("diabetes", (10, 1, 0), 442),
    ],
)
def test_sklearns_tables(name: str, facts: tuple, rows: int) -> None:
    data = make(dataset=name)
    assert data.facts() == dict(zip(("in_dim", "out_dim", "num_classes"), facts, strict=True))
    splits = everything(data)
    assert sum(len(split["y"]) for split in splits.values()) == rows
    x, y = splits["train"]["x"], splits["train"]["y"]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean(0), torch.zeros(facts[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(facts[0]), atol=1e-4, rtol=0)
    if facts[2]:
        assert y.dtype == torch.int64
        for split in splits.values():
            shares = [(part["y"].bincount() / len(part["y"])) for part in (split, splits["train"])]
            torch.testing.assert_close(*shares, atol=0.05, rtol=0)
    else:
        assert abs(y.mean()) < 1e-5
        assert y.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert Table(8, 8, dataset=name, **data.facts()).prepare() is None


@pytest.mark.parametrize(("name", "load"), [("wine", load_wine), ("diabetes", partial(load_diabetes, scaled=False))])
def test_splits_are_a_partition_of_the_rows_and_do_not_depend_on_the_seed(name: str, load: Callable) -> None:
    def rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Sorted, and standardised over all of them, which undoes what was done to each column."""
        together = np.column_stack([x, y]).astype(np.float64)
        together = (together - together.mean(0)) / together.std(0)
        return together[np.lexsort(together.round(2).T)]

    splits = everything(make(dataset=name))
    found = rows(*(np.concatenate([split[part] for split in splits.values()]) for part in ("x", "y")))
    np.testing.assert_allclose(found, rows(*load(return_X_y=True)), atol=1e-4)
    other = everything(make(dataset=name, seed=5))
    assert torch.equal(other["test"]["x"], splits["test"]["x"])


def test_the_baselines_of_diabetes_are_the_mean_and_a_line() -> None:
    data = make(dataset="diabetes")
    train, test = everything(data)["train"], everything(data)["test"]
    design = torch.nn.functional.pad(train["x"].double(), (0, 1), value=1.0)
    weights = torch.linalg.lstsq(design, train["y"].double()[:, None]).solution
    error = torch.nn.functional.pad(test["x"].double(), (0, 1), value=1.0) @ weights - test["y"].double()[:, None]
    assert data.baselines() == pytest.approx(
        {
            "mean test/rmse": test["y"].square().mean().sqrt().item(),
            "linear regression test/rmse": error.square().mean().sqrt().item(),
        },
        rel=1e-4,
    )


def test_the_baselines_of_classes() -> None:
    found = make(dataset="wine").baselines()
    assert found["commonest class test/acc"] == pytest.approx(14 / 36)
    assert found["logistic regression test/acc"] > 0.95
    assert make(dataset="wine", test_fraction=0.0, val_fraction=0.0).baselines() == {}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_file_with_numbers_and_categories(name: str, tmp_path: Path) -> None:
    data = make(path=written(tmp_path, table(), name), target="kind")
    assert data.facts() == {"in_dim": 2 + 3 + 2, "out_dim": 2, "num_classes": 2}
    assert data.classes == ["a", "b"]
    for split in everything(data).values():
        x, y = split["x"], split["y"]
        torch.testing.assert_close(x[:, 0], x[:, 1])  # count is twice the age: the same, standardised
        assert torch.equal(x[:, 2:5].sum(1), torch.ones(len(x)))  # blue, green, red
        assert torch.equal(x[:, 5], y.float())  # False, True: who smokes is of kind a


def test_codes_and_chosen_columns(tmp_path: Path) -> None:
    path = written(tmp_path, table())
    data = make(path=path, target="kind", columns=["colour"], categories="codes")
    x = everything(data)["train"]["x"]
    assert x.shape[1] == 1
    assert len(x.unique()) == 3
    assert abs(x.mean()) < 1e-5


def test_a_category_that_training_has_not_seen_is_all_zeros(tmp_path: Path) -> None:
    path = written(tmp_path, table(colour=[f"c{i}" for i in range(ROWS)]))
    splits = everything(make(path=path, target="kind", columns=["colour"]))
    assert torch.equal(splits["train"]["x"].sum(1), torch.ones(len(splits["train"]["x"])))
    assert not splits["test"]["x"].any()
    assert not everything(make(path=path, target="kind", columns=["colour"], categories="codes"))["test"]["x"].any()


def test_what_is_predicted_follows_the_target_unless_it_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, table(stars=[i % 5 for i in range(ROWS)]))
    assert make(path=path, target="stars").facts()["num_classes"] == 5
    assert make(path=path, target="count").facts()["num_classes"] == 0  # 60 whole numbers
    assert make(path=path, target="stars", kind="number").facts()["num_classes"] == 0
    assert make(path=path, target="smokes").classes == [False, True]


def test_missing_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, table(age=[None if i == 7 else float(i) for i in range(ROWS)]))
    with pytest.raises(ValueError, match=r"1 of 60 values of age are missing or not finite; .* data.missing=mean"):
        make(path=path, target="kind")
    splits = everything(make(path=path, target="kind", columns=["age"], missing="mean"))
    assert sum(int((split["x"] == 0).sum()) for split in splits.values()) == 1


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"kind": ["rare", *"ab" * 29, "a"]}, {}, "class rare of kind has 1 of 60 rows; .* one for each of train, val"),
        ({"kind": ["a"] * ROWS}, {}, "class a of kind has 60 of 60 rows; there must be at least 2 classes"),
        ({}, {"target": "weight"}, "0 columns 'weight'; it has age, count, colour, smokes, kind"),
        ({}, {"columns": ["age", "weight"]}, "0 columns 'weight'"),
        ({"age": [1.0] * ROWS}, {"target": "age"}, "every row has the same age"),
        ({"age": ["2020-01-01"] * ROWS}, {}, "column 'age' holds date32.*; leave it out of data.columns"),
        ({}, {"num_classes": 3}, "data.num_classes=3, but .* has 2; set it to null"),
        ({}, {"kind": "number"}, "column 'kind' holds string, no numbers"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, changes: dict, settings: dict, message: str) -> None:
    path = written(tmp_path, table(**changes))
    with pytest.raises(ValueError, match=message):
        make(**{"path": path, "target": "kind", **settings})


def test_a_target_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, table(count=[None, *range(ROWS - 1)]))
    with pytest.raises(ValueError, match="1 of 60 rows have no count, which is to be predicted"):
        make(path=path, target="count")
    path = written(tmp_path, table(age=[float("nan"), *map(float, range(ROWS - 1))]), "t.parquet")
    with pytest.raises(ValueError, match="1 of 60 rows have no age, which is to be predicted"):
        make(path=path, target="age")


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere.csv"):
        make(path="nowhere.csv", target="y")
    (tmp_path / "t.xls").write_text("a")
    with pytest.raises(ValueError, match=r"is no .csv, .tsv or .parquet file"):
        make(path=str(tmp_path / "t.xls"), target="y")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"cannot be read: .*2 columns, got 1"):
        make(path=str(tmp_path / "t.csv"), target="a")
    (tmp_path / "e.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="has no rows"):
        make(path=str(tmp_path / "e.csv"), target="a")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        make(path=str(tmp_path / "t.parquet"), target="a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.dataset=None and data.path=None: give one"),
        ({"dataset": "iris", "path": "t.csv"}, "data.dataset=iris and data.path=t.csv: give one"),
        ({"path": "t.csv"}, "needs data.target"),
        ({"dataset": "iris", "val_fraction": 0.5, "test_fraction": 0.5}, "leave something below 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table(8, 8, **settings)
