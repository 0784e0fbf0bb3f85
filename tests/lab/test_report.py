"""The report: it is made of the records alone, and a browser shows it whole on a desk and on a phone."""

from __future__ import annotations

import re
import shutil

import pytest

from sgd_sai.cli import main
from sgd_sai.lab.optimizers import DEFAULT
from sgd_sai.lab.records import METRICS, RUN, read_runs
from sgd_sai.lab.summary import by_task, sentences


def test_it_is_rebuilt_from_the_records_alone(runs, tmp_path):
    for name in (RUN, METRICS):
        for path in runs.rglob(name):
            copy = tmp_path / "records" / path.relative_to(runs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    page, figure = tmp_path / "again.html", tmp_path / "figure.png"
    assert main(["report", str(tmp_path / "records"), "--out", str(page), "--png", str(figure)]) == 0
    assert page.read_bytes() == (runs / "report.html").read_bytes()
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(figure.read_bytes()) > 10_000


def test_the_table_says_what_the_records_say(runs):
    (task,) = by_task(read_runs([runs]))
    assert [row.optimizer for row in task.rows] == list(DEFAULT)
    text = (runs / "report.html").read_text()
    for row in task.rows:
        results = [run.record.result for run in row.runs]
        accuracy = sum(result["val_accuracy"] for result in results) / 2
        assert row.mean("val_accuracy") == pytest.approx(accuracy)
        assert f"{100 * accuracy:.1f} ± " in text
        assert row.rates == [row.tuning["lr"]]
    assert task.rows[0].state_bytes < 0.51 * task.rows[1].state_bytes  # AdamW keeps twice as much


def test_the_sentences_say_who_is_ahead_and_by_how_much(runs):
    (task,) = by_task(read_runs([runs]))
    said = sentences([task])
    best, *others = task.ranking
    assert said[0].startswith(f"{task.about['title']}: {best.label} ")
    for row in others:
        points = 100 * (best.mean("val_accuracy") - row.mean("val_accuracy"))
        assert f"{row.label} ends {points:.1f} points lower" in said[0] or "level" in said[0]
    assert any("of AdamW's" in sentence for sentence in said)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(runs, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((runs / "report.html").as_uri())
    page.wait_for_selector(".chart .main-svg")
    assert page.locator(".chart").count() == 3
    assert page.locator("#cnn-val_loss .scatterlayer .trace").count() == 12  # 6 of training, 6 of validation
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#cnn-val_loss .xtitle").text_content() == "steps"
    page.get_by_label("seconds of training").check()
    assert page.locator("#cnn-val_loss .xtitle").text_content() == "seconds of training"
    assert complaints == []
    assert [url for url in requests if not re.match("file:|data:|blob:", url)] == []
    page.close()
