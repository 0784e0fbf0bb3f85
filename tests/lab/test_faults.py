"""What is wrong with a file is one line that names it, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys

import pytest
from lab_commands import compare

from run_files import files_of
from sgd_sai.cli import main
from sgd_sai.lab import packed, tuned
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.records import CHECKPOINT, GSNR, METRICS, RUN, TEXT, Record

DEEP = '{"a":' * 5000 + "1" + "}" * 5000
MISSING = object()


class Raw(str):
    """JSON as it is, which Python's own would not write."""


def written(value):
    """JSON with what is `Raw` in it."""
    raw = []

    def marked(value):
        if isinstance(value, Raw):
            raw.append(value)
            return f"@{len(raw) - 1}@"
        if isinstance(value, dict):
            return {name: marked(member) for name, member in value.items()}
        return [marked(member) for member in value] if isinstance(value, list) else value

    text = json.dumps(marked(value))
    for number, each in enumerate(raw):
        text = text.replace(f'"@{number}@"', each)
    return text


def put(value, place, new):
    """A value with something else at a place, as in "config.lr"; "" is all of it."""
    name, _, rest = place.partition(".")
    if not name:
        return new
    key = int(name) if isinstance(value, list) else name
    if new is MISSING and not rest:
        return {other: member for other, member in value.items() if other != key}
    changed = list(value) if isinstance(value, list) else dict(value)
    changed[key] = put(value[key] if rest else None, rest, new)
    return changed


@pytest.fixture
def one(runs, tmp_path):
    """The folder of a run of SGD-SaI that has finished."""
    return shutil.copytree(runs / "cnn-sgd-sai-0", tmp_path / "runs" / "cnn-sgd-sai-0")


def refused(folder, file, capsys):
    """The one line that a report prints; it is not begun."""
    page = folder.parent / "page.html"
    capsys.readouterr()
    assert main(["report", str(folder), "--out", str(page)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sgd-sai: {file}: not ")
    assert len(line) < len(str(file)) + 300
    assert not page.exists()
    return line


@pytest.mark.parametrize(
    ("place", "new", "reason"),
    [
        ("", Raw(DEEP), "nested too deeply"),
        ("", Raw("[" * 100_000), "nested too deeply"),
        ("", [], "it is []; allowed: an object"),
        ("config", MISSING, "lacks 'config'"),
        ("config", [], "config is []; allowed: an object"),
        ("config.optimizer", "nadamax", "config.optimizer is 'nadamax'; allowed: "),
        ("config.lr", "0.1", "config.lr is '0.1'; allowed: a finite number"),
        ("config.lr", Raw("1e999"), "config.lr is inf"),
        ("config.lr", 0, "config.lr is 0; allowed: > 0"),
        ("config.seed", 0.5, "config.seed is 0.5; allowed: an integer"),
        ("config.steps", Raw("9" * 4000), "config.steps is 9999"),
        ("config.steps", True, "config.steps is True"),
        ("config.steps", "<script>", "config.steps is '<script>'"),
        ("config.unknown", 1, "config has 'unknown'"),
        ("status", "done", "status is 'done'; allowed: 'running' or"),
        ("status", "diverged", "result lacks 'diverged_at'"),
        ("task.metric", MISSING, "task lacks 'metric'"),
        ("task.metric", "val_f1", "task.metric is 'val_f1'; allowed: 'val_loss' or 'val_accuracy'"),
        ("task.clip", "none", "task.clip is 'none'"),
        ("task.notes", Raw('{"a":' * 30 + "1" + "}" * 30), "task.notes is nested too deeply"),
        ("tuning.grid", MISSING, "tuning lacks 'grid'"),
        ("tuning.grid", [], "tuning.grid is empty"),
        ("tuning.grid.0", -1.0, "tuning.grid[0] is -1.0; allowed: > 0"),
        ("tuning.points.0", 1, "tuning.points[0] is 1; allowed: an object"),
        ("tuning.points.0.lr", MISSING, "tuning.points[0] lacks 'lr'"),
        ("machine", {}, "machine lacks 'cores'"),
        ("machine.memory_gib", [], "machine.memory_gib is []"),
        ("versions", [], "versions is []; allowed: an object"),
        ("versions.torch", None, "versions.torch is None; allowed: a text"),
        ("date", 20261128, "date is 20261128; allowed: a text"),
        ("result", None, "result lacks"),
        ("result.val_loss", MISSING, "result lacks 'val_loss'"),
        ("result.val_loss", Raw("NaN"), "result.val_loss is nan"),
        ("result.val_accuracy", MISSING, "result lacks 'val_accuracy'"),
        ("result.seconds", "1 s", "result.seconds is '1 s'"),
        ("result.state_bytes", -1, "result.state_bytes is -1; allowed: ≥ 0"),
    ],
)
def test_a_record(place, new, reason, one, capsys):
    record = json.loads((one / RUN).read_text())
    (one / RUN).write_text(written(put(record, place, new)))
    assert reason in refused(one, one / RUN, capsys)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it lacks the last evaluation"),
        ("[1]\n", "line 1 is [1]; allowed: an object"),
        ("{}\n", "evaluations[0] lacks"),
        (f"{DEEP}\n", "nested too deeply"),
        ('{"step": 1e999, "seconds": 1, "val_loss": 1, "val_accuracy": 1}\n', "line 1.step is inf"),
        ('{"step": "0", "seconds": 1, "val_loss": 1, "val_accuracy": 1}\n', "step is '0'"),
        ('{"step": 0, "seconds": 1, "val_loss": 1}\n', "lacks 'val_accuracy', by which the task is judged"),
        ('{"step": 5, "seconds": 1, "train_loss": NaN, "lr": 1, "step_ms": 1}\n', "train_loss is nan"),
        ('{"step": 5, "seconds": 1, "val_loss": 1, "val_accuracy": 1}\n' * 2, "step 5 follows step 5"),
    ],
)
def test_metrics(content, reason, one, capsys):
    (one / METRICS).write_text(content)
    assert reason in refused(one, one / METRICS, capsys)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "it is []"),
        ('{"d": {"w": 4}}', "lacks 'steps'"),
        ('{"d": {"w": 4}, "steps": {"1": [1.0, 2.0]}}', "steps.1 has 2 values of 1 blocks"),
        ('{"d": {"w": 4}, "steps": {"1": [0.0]}}', "steps.1[0] is 0.0; allowed: > 0"),
        ('{"d": {"w": 4}, "steps": {"1": [-1.0]}}', "steps.1[0] is -1.0"),
        ('{"d": {"w": 4}, "steps": {"1": [1e300]}}', "steps.1[0] is 1e+300"),
        ('{"d": {"w": 4}, "steps": {"first": [1.0]}}', "steps is 'first'"),
        ('{"d": {"w": 4}, "steps": {"2": [1.0], "1": [1.0]}}', "step 1 follows step 2"),
        ('{"d": {"w": "4"}, "steps": {}}', "d.w is '4'"),
    ],
)
def test_the_g_snr_of_blocks(content, reason, one, capsys):
    (one / GSNR).write_text(content)
    assert reason in refused(one, one / GSNR, capsys)


@pytest.mark.parametrize("name", [RUN, METRICS, GSNR, TEXT])
@pytest.mark.parametrize("what", ["a folder", "no text"])
def test_a_file_that_is_none(name, what, one, capsys):
    (one / name).unlink(missing_ok=True)
    if what == "a folder":
        (one / name).mkdir()
    else:
        (one / name).write_bytes(b"\xff\xfe\n")
    refused(one, one / name, capsys)


@pytest.mark.parametrize(
    ("file", "place", "new", "reason"),
    [
        (packed.RUNS, "config.lr", Raw("1e999"), "config.lr is inf"),
        (packed.RUNS, "machine", None, "machine is None"),
        (packed.CURVES, "training", [1], "training is [1]; allowed: an object"),
        (packed.CURVES, "training.step", [1], "argument 2 is longer"),
        (packed.CURVES, "training.step.0", "x", "training[0].step is 'x'"),
        (packed.CURVES, "evaluations.step.0", Raw("1e999"), "evaluations.step[0] is inf"),
        (packed.CURVES, "blocks", None, "blocks is None; allowed: an object"),
        (packed.CURVES, "gsnr.1.0", 0, "steps.1[0] is 0; allowed: > 0"),
        (packed.CURVES, "pictures", "no picture", "base64"),
        (packed.CURVES, "text", 1, "text is 1; allowed: a text"),
    ],
)
def test_a_packed_study(file, place, new, reason, one, tmp_path, capsys):
    study = tmp_path / "packed" / "study"
    study.parent.mkdir()
    packed.write(read_runs([one]), study)
    *shared, row = (study / file).read_text("utf-8").splitlines()
    (study / file).write_text("\n".join([*shared, written(put(json.loads(row), place, new))]) + "\n", "utf-8")
    assert reason in refused(study, study / file, capsys)


@pytest.mark.parametrize(
    ("place", "new", "reason"),
    [
        ("points", MISSING, "lacks 'points'"),
        ("points", {}, "is none of its points"),
        ("points.lr.0", "x", "points[0].lr is 'x'"),
        ("lr", Raw("Infinity"), "lr is inf"),
        ("lr", Raw("1e999"), "lr is inf"),
        ("lr", -1, "lr is -1; allowed: > 0"),
        ("lr", 0.123, "lr is 0.123, which is none of its points"),
        ("seed", MISSING, "lacks 'seed'"),
        ("machine", None, "machine is None; allowed: an object"),
        ("machine", {}, "unhashable"),
        ("data", Raw("[" * 3000), "nested too deeply"),
    ],
)
def test_a_file_of_learning_rates(place, new, reason, tmp_path, capsys):
    path = tmp_path / "tuned.jsonl"
    entry = tuned.read(tuned.OWN)["cnn"]["sgd-sai"]
    tuned.enter(path, "cnn", "sgd-sai", entry)
    *shared, row = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*shared, written(put(json.loads(row), place, new))]) + "\n", "utf-8")
    capsys.readouterr()
    assert main(compare(tmp_path / "out", "--tuned", str(path), lr=None)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sgd-sai: {path}: not a file of tuned learning rates (")
    assert reason in line
    assert not (tmp_path / "out").exists()


def test_resuming_beside_a_damaged_run_that_has_ended_changes_nothing(runs, tmp_path, capsys):
    out = shutil.copytree(runs, tmp_path / "out")
    path = out / "cnn-adamw-1" / METRICS
    path.write_text("[1]\n")
    before = files_of(out)
    given = compare(out, "--seeds", "0,1", "--resume", steps=30, optimizer="sgd-sai,adamw,sgd", lr=None)
    capsys.readouterr()
    assert main(given) == 2
    assert capsys.readouterr().err.startswith(f"sgd-sai: {path}: not the metrics of a run (line 1 is [1]")
    assert files_of(out) == before


def test_curves_are_drawn_as_far_as_there_are_any(runs, tmp_path):
    """A packed study may have none, and a curve may begin late."""
    found = read_runs([runs])
    late = [line for line in found[0].evaluations if line["step"] > 10]
    for name, curves in (("none", []), ("late", late)):
        packed.write([type(run)(run.record, [], curves) for run in found], tmp_path / name)
        assert main(["report", str(tmp_path / name), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(("limit", "jobs"), [(2000, "1"), (20_000, "2")], ids=["metrics", "checkpoint"])
def test_a_disk_that_is_full(limit, jobs, tmp_path):
    """Here, files that cannot grow over a limit."""
    out = tmp_path / "out"
    given = [sys.executable, "-m", "sgd_sai.cli", *compare(out, "--jobs", jobs, steps=5)]
    process = subprocess.run(
        given,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    (line,) = (line for line in process.stderr.splitlines() if line.startswith("sgd-sai: "))
    assert line.startswith(f"sgd-sai: --out: cannot write to {out}: File too large")
    assert main(compare(out, "--resume", steps=5)) == 0
    assert Record.read(out / "cnn-sgd-sai-0").status == "finished"
    assert (out / "cnn-sgd-sai-0" / CHECKPOINT).exists()
