"""The report: it is made of the records alone, and a browser shows it whole on a desk and on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sgd_sai.cli import main
from sgd_sai.lab.optimizers import DEFAULT
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.records import GSNR, METRICS, RUN, BlockGSNR, Run
from sgd_sai.lab.report import figure, page
from sgd_sai.lab.summary import by_task
from sgd_sai.lab.summary.sentences import sentences
from sgd_sai.lab.sweep import page as sweep_page
from tests.html.outline import Outline

STUDY = Path(__file__).parents[3] / "benchmarks" / "results" / "study"


def test_it_is_rebuilt_from_the_records_alone(runs, tmp_path):
    for name in (RUN, METRICS, GSNR):
        for path in runs.rglob(name):
            copy = tmp_path / "records" / path.relative_to(runs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    again = tmp_path / "again.html"
    assert main(["report", str(tmp_path / "records"), "--out", str(again)]) == 0
    assert again.read_bytes() == (runs / "report.html").read_bytes()
    for name in ("steps", "seconds", "final", "gsnr"):
        figure = (tmp_path / f"again-{name}.png").read_bytes()
        assert figure.startswith(b"\x89PNG")
        assert len(figure) > 10_000
        assert (runs / f"report-{name}.png").exists()


def test_runs_of_other_settings_are_other_tables(runs):
    """Of a sweep they are no seeds at all, and shown as surfaces."""
    one = read_runs([runs])[0]

    def at(**changes):
        return Run(
            replace(one.record, config=replace(one.record.config, **changes)), one.training, one.evaluations
        )

    assert len(by_task([one, at(steps=99)])) == 2
    (task,) = by_task([one, at(lr=0.123), at(seed=7)])
    assert [len(row.runs) for row in task.rows] == [1, 2]
    (task,) = by_task([at(lr=0.12345678), at(lr=0.12345679)])
    assert [row.label.partition(", ")[2] for row in task.rows] == ["lr 0.12345678", "lr 0.12345679"]
    swept = [at(lr=lr, weight_decay=decay) for lr in (0.1, 1.0) for decay in (0.0, 1e-3)]
    assert by_task(swept) == []
    text = page.build([one, *swept])
    assert '"type":"surface"' in text
    assert "4 of 4" in text
    assert '"type":"surface"' not in page.build([one])


def test_the_table_says_what_the_records_say(runs):
    (task,) = by_task(read_runs([runs]))
    assert [row.optimizer for row in task.rows] == list(DEFAULT)
    text = (runs / "report.html").read_text()
    for row in task.rows:
        results = [run.record.result for run in row.runs]
        accuracy = sum(result["val_accuracy"] for result in results) / 2
        assert row.mean("val_accuracy") == pytest.approx(accuracy)
        assert f"{100 * accuracy:.1f}\u00a0± " in text or f"{100 * accuracy:.1f}\u00a0±\u00a0" in text
        assert row.lr == row.tuning["lr"]
        assert row.trials == len(row.tuning["grid"])
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


def test_drawing_it_imports_no_models(runs, tmp_path):
    """A report of records is drawn where transformers, or what else a task needs, is not installed."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['transformers', 'tokenizers', 'sklearn', 'optuna'])); "
        "from sgd_sai.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    page = tmp_path / "report.html"
    drawing = [sys.executable, "-c", program, "report", str(runs), "--out", str(page)]
    ended = subprocess.run(drawing, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert page.read_bytes() == (runs / "report.html").read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(runs, browser, width, scheme):
    shown = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    complaints, requests = [], []
    shown.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto((runs / "report.html").as_uri())
    shown.wait_for_selector(".chart .main-svg")
    assert shown.locator(".chart").count() == 5  # loss, accuracy, tuning; g-SNR of two optimizers
    assert shown.locator("#cnn-val_loss .scatterlayer .trace").count() == 12  # 6 of training, 6 of validation
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert shown.locator("#cnn-val_loss .xtitle").text_content() == "steps"
    shown.get_by_label("seconds of training").check()
    assert shown.locator("#cnn-val_loss .xtitle").text_content() == "seconds of training"
    assert complaints == []
    assert [url for url in requests if not re.match("file:|data:|blob:", url)] == []
    shown.close()


def hostile(value, text):
    """The value with `text` after each string in it, but for those that name something of the lab's own."""
    if isinstance(value, dict):
        own = ("optimizer", "metric", "status")
        return {key: each if key in own else hostile(each, text) for key, each in value.items()}
    return value + text if isinstance(value, str) else value


def attacked(run, text):
    """The run with `text` in every text that its files hold, and for a number of a line of the page."""
    fields = hostile({**vars(run.record), "config": vars(run.record.config)}, text)
    fields["config"]["steps"] = f"60{text}"
    gsnr = run.gsnr and BlockGSNR({name + text: d for name, d in run.gsnr.d.items()}, run.gsnr.steps)
    config = replace(run.record.config, **fields.pop("config"))
    record = replace(run.record, **fields, config=config)
    return replace(run, record=record, gsnr=gsnr, text=run.text and run.text + text)


EVIL = '"><script>alert(1)</script><!--<script>'


@pytest.mark.parametrize("swept", [False, True])
def test_a_record_puts_no_element_into_the_page(swept):
    """Of every kind that the study has: losses and accuracies, texts and pictures, g-SNR."""
    runs = [run for run in read_runs([STUDY]) if run.record.config.seed == 0]
    if swept:  # on a grid of one point each
        runs = [at_a_point(run) for run in runs]
    clean, attack = (Outline(page.build([attacked(run, text) for run in runs])) for text in ("", EVIL))
    assert attack.elements == clean.elements
    assert sum("alert(1)" in text for text in attack.texts) > 20
    if swept:
        alone = (Outline(sweep_page.page([attacked(run, text) for run in runs])) for text in ("", EVIL))
        assert next(alone).elements == next(alone).elements


@pytest.mark.parametrize("text", ["$\\frac{$", "$x$ \\$", "\x00\x1b[2J\udcff"])
def test_a_record_draws_no_formula_and_breaks_no_figure(text):
    runs = [run for run in read_runs([STUDY]) if run.record.config.seed == 0][:2]
    drawn = figure.draw(by_task([attacked(run, text) for run in runs]))
    assert {*drawn} == {"steps", "seconds", "final", "gsnr"}
    assert sweep_page.figure([attacked(at_a_point(run), text) for run in runs]).startswith(b"\x89PNG")
    assert not figure.plain(text).replace("\\$", "").count("$")


def test_an_axis_goes_as_far_as_the_g_snr():
    run = next(run for run in read_runs([STUDY]) if run.gsnr is not None)
    (step, values), *_ = run.gsnr.steps.items()
    for far in (1e30, 1e-99):  # as an integer, a power of ten is too large for an axis from 19 on
        steps = {**run.gsnr.steps, step: [far, *values[1:]]}
        assert "gsnr" in figure.draw(by_task([replace(run, gsnr=replace(run.gsnr, steps=steps))]))


def at_a_point(run):
    return replace(run, record=replace(run.record, config=replace(run.record.config, weight_decay=0.1)))
