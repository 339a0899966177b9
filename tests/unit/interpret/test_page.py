from pathlib import Path

import pytest
import torch

from scaledl.interpret import page
from scaledl.interpret.methods import ATTRIBUTIONS, METHODS
from scaledl.interpret.pictures import coloured, data_uri, plain, shown_on
from tests.browser import PROGRAM, Browser


def test_every_method_says_what_it_says_and_what_not() -> None:
    assert set(ATTRIBUTIONS) < set(METHODS)
    for name, method in METHODS.items():
        assert method.says_not.startswith("It does not say"), name
        assert method.says.count(". ") == method.says_not.count(". ") == 0, "one sentence each"
        assert page.described(name).count("<p>") == 2


def test_words_are_escaped() -> None:
    text = page.page("<a>", {"run": "<b>"}, [page.tokens(["<i>", "\n"], [1.0, -2.0]), page.picture("", '"x', "<u>")])
    assert not any(f"<{tag}>" in text.partition("</style>")[2] for tag in "aiu")
    assert "<b>&lt;b&gt;</b>" in text
    assert "&quot;x" in text
    assert "⏎" in text


def test_red_speaks_for_and_blue_against() -> None:
    pixels = coloured(torch.tensor([[2.0, 0.0, -1.0]]))
    assert torch.equal(pixels[0, 1], torch.ones(3))
    assert pixels[0, 0, 0] > 0.7 > 0.3 > pixels[0, 0, 2]
    assert pixels[0, 2, 2] > pixels[0, 2, 0]
    assert "rgba(204, 36, 33, 0.700)" in page.number(2.0, 2.0)
    assert "rgba(26, 92, 199, 0.350)" in page.number(-1.0, 2.0)
    assert coloured(torch.zeros(2, 2)).min() == 1


def test_pictures_have_the_size_of_the_image() -> None:
    for channels in (1, 3):
        image = torch.rand(channels, 6, 4)
        assert plain(image).shape == shown_on(image, torch.rand(3, 2)).shape == (6, 4, 3)
    assert plain(torch.tensor([[[0.0, 1.0]]]))[0, :, 0].tolist() == [1, 0]  # ink
    assert data_uri(plain(image)).startswith("data:image/png;base64,iVBOR")


@pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine")
def test_the_browser_test_would_see_requests_and_complaints(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no"); missing()</script>')
    good = tmp_path / "good.html"
    good.write_text(page.page("t", {}, [page.picture(data_uri(torch.rand(4, 4, 3)), "x")]))
    with Browser(tmp_path / "profile") as browser:
        browser.open(good)
        assert (browser.requests, browser.complaints) == ([], [])
        browser.open(bad)
    assert browser.requests == ["http://127.0.0.1:9/x.png"]
    assert len(browser.complaints) >= 2
