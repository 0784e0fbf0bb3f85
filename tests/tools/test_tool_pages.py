"""The pages of both commands in a browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sgd_sai.cli import main
from tests.html.outline import Outline

OWN = Path(__file__).parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(OWN)
        patched.syspath_prepend(str(OWN))
        for name, steps in (("flagged", "3"), ("plain", "3"), ("named", "1")):
            main(["gsnr", f"workloads:{name}", "--steps", steps, "--html", str(folder / f"{name}.html")])
        main(["lr-find", "workloads:plain", "--steps", "20", "--html", str(folder / "lr.html")])
    return [folder / f"{name}.html" for name in ("flagged", "plain", "named", "lr")]


def test_pages_draw_without_errors_and_fit_a_phone(pages: list[Path], browser: Any) -> None:
    for path, charts in zip(pages, (3 + 4, 3 + 4, 3 + 4, 1), strict=True):
        page = browser.new_page(viewport={"width": 390, "height": 800})
        troubles: list[str] = []
        page.on("console", lambda message, to=troubles: to.append(message.text))
        page.on("pageerror", lambda error, to=troubles: to.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector(".js-plotly-plot")
        drawn = page.locator(".js-plotly-plot .main-svg .scatterlayer").count()
        assert drawn == charts - (0 if importlib.util.find_spec("adam_mini") or charts == 1 else 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".js-plotly-plot .scatterlayer .point, .scatterlayer .js-line").count() > 0
        assert not troubles
        page.close()


def test_names_of_a_model_put_no_element_into_a_page_and_steer_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outlines = []
    for name in ("plainly_called", "hostile"):
        page = tmp_path / f"{name}.html"
        assert main(["gsnr", f"workloads:{name}", "--steps", "2", "--html", str(page)]) == 0
        outlines.append(Outline(page.read_text("utf-8")))
    assert outlines[0].elements == outlines[1].elements
    assert sum("alert(1)" in text for text in outlines[1].texts) > 3
    for more in ([], ["--json"]):
        assert main(["gsnr", "workloads:hostile", *more]) == 0
        assert main(["memory", "workloads:hostile", *more]) == 0
    printed = capsys.readouterr()
    assert "alert(1)" in printed.out
    assert {*"\x1b\x07\u202e"} & {*printed.out, *printed.err} == set()
