"""`scaledl explain`: from a run to a page that a browser shows."""

import importlib.util
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest

from scaledl.explain import explain
from scaledl.interpret.methods import METHODS
from tests.browser import PROGRAM, Browser
from tests.conftest import TINY_GPT

pytestmark = pytest.mark.e2e
CAPTUM = importlib.util.find_spec("captum") is not None
CNN, GPT, WINE = (Path("runs") / name / "a" for name in ("cnn/digits", "llm/gpt_shakespeare", "mlp/wine"))
SHORT = ["run_id=a", "trainer.val_check_interval=20"]
CLASSES_CNN = ["experiment=cnn/digits", "trainer.max_steps=60", *SHORT]
TEXT = "The quick brown fox jumps over the lazy dog. " * 400


def titles(page: str) -> set[str]:
    return {name for name, method in METHODS.items() if escape(method.says) in page}


def refused(run: Path, methods: list[str] | None = None, prompt: str | None = None, output: Path | None = None) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        explain(run, "best", None, 3, methods, prompt, output, 0, [])
    return str(error.value)


def opens_in_a_browser(page: Path, folder: Path, num_images: int) -> None:
    if PROGRAM is None:
        pytest.skip("the page is written, but there is no chromium on this machine to open it")
    with Browser(folder / "profile") as browser:
        for scheme in ("light", "dark"):
            browser.open(page, scheme)
            ground = browser.value("getComputedStyle(document.body).backgroundColor")
            assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
            assert browser.value("document.images.length") == num_images
            assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            browser.picture(folder / f"{scheme}.png")
            assert (folder / f"{scheme}.png").stat().st_size > 20_000
    assert (browser.requests, browser.complaints) == ([], [])


def test_a_cnn(scaledl, tmp_path: Path) -> None:
    scaledl("train", *CLASSES_CNN)
    done = scaledl("explain", str(CNN), "--samples", "3")
    assert done.stdout.splitlines()[-1] == str(CNN / "explain.html")
    page = (tmp_path / CNN / "explain.html").read_text()
    by_captum = {"lime", "shap"} if CAPTUM else set()
    assert titles(page) == set(METHODS) - {"attention", "lime", "shap"} | by_captum
    sums = re.findall(r"sum (-?[\d.]+) of (-?[\d.]+)", page)
    assert len(sums) == 3
    for found, difference in sums:
        assert float(found) == pytest.approx(float(difference), rel=0.02, abs=0.01)
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert not list((tmp_path / CNN).glob(".explain*"))
    per_sample = 5 + len(by_captum)  # the image, and what is found in it
    opens_in_a_browser(tmp_path / CNN / "explain.html", tmp_path, 3 * per_sample + 10 + 10 + 2)


def test_a_language_model(scaledl, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    scaledl("train", *TINY_GPT, "data.path=fox.txt", "data.seq_len=16", "trainer.max_steps=60", *SHORT)
    scaledl("explain", str(GPT), "--samples", "2")
    page = (tmp_path / GPT / "explain.html").read_text()
    expected = {"saliency", "integrated_gradients", "occlusion", "attention", "gradients", "landscape"}
    assert titles(page) == expected
    assert page.count("the text goes on with") == 2

    (tmp_path / "fox.txt").unlink()  # a prompt needs no data
    scaledl("explain", str(GPT), "--prompt", "The quick", "--output", "other.html", "--checkpoint", "last")
    other = (tmp_path / "other.html").read_text()
    assert titles(other) == expected - {"gradients", "landscape"}
    assert len(re.findall(r'<span style="[^"]*" title="[^"]*">q</span>', other)) == 3 + 2  # methods and layers
    assert page == (tmp_path / GPT / "explain.html").read_text()
    assert "☃" in refused(tmp_path / GPT, prompt="☃")
    opens_in_a_browser(tmp_path / GPT / "explain.html", tmp_path, 2 * 2 + 2)  # heads of layers; gradients, landscape


def test_a_table_by_its_columns(scaledl, tmp_path: Path) -> None:
    scaledl("train", "experiment=mlp/wine", "trainer.max_steps=40", *SHORT)
    assert "--methods attention does not fit MLP on table" in refused(tmp_path / WINE, methods=["attention"])
    assert "--prompt is for language models" in refused(tmp_path / WINE, prompt="x")
    assert "there is no folder" in refused(tmp_path / WINE, output=tmp_path / "no" / "x.html")
    assert not (tmp_path / WINE / "explain.html").exists()
    scaledl("explain", str(WINE), "--samples", "3", "--methods", "saliency", "occlusion", "--split", "val")
    page = (tmp_path / WINE / "explain.html").read_text()
    assert titles(page) == {"saliency", "occlusion"}
    assert page.count("flavanoids") == 3  # nonflavanoid_phenols is another
    assert "3 of val" in page
    shutil.rmtree(tmp_path / WINE / "checkpoints")
    assert "holds no checkpoint yet" in scaledl("explain", str(WINE), code=1).stderr
    assert page == (tmp_path / WINE / "explain.html").read_text()


def test_help_names_the_methods_without_torch(environment, tmp_path: Path) -> None:
    words = "import sys; from scaledl import cli; sys.argv = ['scaledl', 'explain', '--help']\n"
    words += "try: cli.main()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(name in done.stdout for name in METHODS)
