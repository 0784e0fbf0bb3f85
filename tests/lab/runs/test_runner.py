"""A run: it resumes bit for bit after SIGKILL, stops at Ctrl-C with a report, and says when it diverged."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from lab_commands import PATIENCE, compare, start, wait_for_step

from sgd_sai.cli import main
from sgd_sai.lab.records import CHECKPOINT, GSNR, METRICS, BlockGSNR, Record
from sgd_sai.lab.runs.training import CHECKPOINT_EVERY, LOG_EVERY, Training
from sgd_sai.lab.schedules import Schedule

RUN = "cnn-sgd-sai-0"
#: Where a run is stopped or killed: a line after a checkpoint. It then has this many steps.
STOPPED, STEPS = CHECKPOINT_EVERY + LOG_EVERY, 40


def lines(folder):
    """The metrics without what a clock says. JSON of numbers only: NaN would raise."""

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    read = [json.loads(line, parse_constant=refuse) for line in (folder / METRICS).read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "step_ms")} for line in read]


def assert_same(one, other, path="checkpoint"):
    """Equal bit for bit, whatever the nesting."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def test_the_schedule_rises_in_a_tenth_of_the_steps_and_falls_to_zero():
    schedule = Schedule()
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[:11] == pytest.approx([*(k / 10 for k in range(1, 11)), 1.0])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 1e-3
    assert schedule(0, 1) == 1.0
    assert [schedule(step, 100, constant=True) for step in range(100)] == [*factors[:10], *[1.0] * 90]


def test_the_papers_schedules():
    drops = Schedule(warm_up=0.0, drop_every=0.4)
    assert [drops(step, 200) for step in (0, 79, 80, 159, 160, 199)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    line = Schedule(warm_up=0.1, linear=True)
    assert [line(step, 100) for step in (0, 9, 10, 55)] == pytest.approx([0.1, 1, 1, 0.5])
    floored = Schedule(warm_up=0.02, floor=0.1)
    assert floored(99_999, 100_000) == pytest.approx(0.1, rel=1e-6)


def test_a_checkpoint_falls_on_a_logged_step():
    assert CHECKPOINT_EVERY % LOG_EVERY == 0


@pytest.mark.parametrize("optimizer", ["sgd-sai", "adamw", "muon"])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, optimizer):
    lr = {"sgd-sai": "0.5", "adamw": "0.001", "muon": "0.001"}[optimizer]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = f"cnn-{optimizer}-0"
    assert main(compare(whole, steps=STEPS, optimizer=optimizer, lr=lr)) == 0

    process = start(compare(killed, steps=STEPS, optimizer=optimizer, lr=lr), held_at=STOPPED)
    wait_for_step(process, killed / run, STOPPED)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Record.read(killed / run).status == "running"
    assert lines(killed / run)[-1]["step"] == STOPPED

    assert main(compare(killed, "--resume", steps=STEPS, optimizer=optimizer, lr=lr)) == 0
    assert lines(killed / run) == lines(whole / run)
    assert (killed / run / GSNR).read_text() == (whole / run / GSNR).read_text()
    ends = [torch.load(folder / run / CHECKPOINT, weights_only=True) for folder in (whole, killed)]
    for end in ends:
        del end["seconds"], end["metrics_bytes"]
    assert_same(*ends)
    results = [Record.read(folder / run).result for folder in (whole, killed)]
    assert results[0]["val_loss"] == results[1]["val_loss"]

    resumed = compare(killed, "--resume", steps=STEPS, optimizer=optimizer, lr=lr)
    assert main(resumed) == 0  # nothing is left to do
    assert lines(killed / run) == lines(whole / run)


def test_ctrl_c_leaves_a_report_and_a_run_that_resumes(tmp_path):
    out = tmp_path / "out"
    process = start(compare(out, steps=5000))
    wait_for_step(process, out / RUN, LOG_EVERY)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert Record.read(out / RUN).status == "interrupted"
    assert lines(out / RUN)
    assert "stopped at step" in (out / "report.html").read_text()


def test_runs_side_by_side_stop_at_ctrl_c_and_are_the_same_as_one_after_another(tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    seeds, both = ("--seeds", "0,1"), (RUN, "cnn-sgd-sai-1")
    process = start(compare(parted, *seeds, "--jobs", "2", steps=STEPS), held_at=STOPPED)
    for run in both:
        wait_for_step(process, parted / run, STOPPED)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    statuses = [Record.read(path.parent).status for path in parted.glob("*/run.json")]
    assert statuses == ["interrupted", "interrupted"]
    assert "stopped at step" in (parted / "report.html").read_text()

    assert main(compare(parted, *seeds, "--resume", steps=STEPS)) == 0
    assert main(compare(whole, *seeds, steps=STEPS)) == 0
    for run in both:
        assert lines(parted / run) == lines(whole / run)


def test_the_g_snr_of_every_block_is_recorded_and_changes_nothing(tmp_path, monkeypatch):
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    assert main(compare(seen, steps=20)) == 0
    monkeypatch.setattr(Training, "_measure", lambda self: None)
    assert main(compare(unseen, steps=20)) == 0
    assert lines(seen / RUN) == lines(unseen / RUN)
    assert not (unseen / RUN / GSNR).exists()

    recorded = BlockGSNR.read(seen / RUN)
    assert list(recorded.steps) == [1, *range(2, 21, 2)]
    assert sum(recorded.d.values()) == Record.read(seen / RUN).parameters
    saved = torch.load(seen / RUN / CHECKPOINT, weights_only=True)["optimizer"]
    latched = [state["gsnr"] for state in saved["state"].values()]  # at the first step, in groups' order
    assert sorted(recorded.steps[1]) == pytest.approx(sorted(latched), rel=1e-3)


def test_a_diverged_run_is_recorded_as_such(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(compare(out, lr="1e6", steps=20)) == 0
    record = Record.read(out / RUN)
    assert record.status == "diverged"
    assert 1 <= record.result["diverged_at"] <= 20
    assert "val_loss" not in record.result
    lines(out / RUN)  # valid JSON
    assert "diverged at step" in capsys.readouterr().out
    assert "diverged at step" in (out / "report.html").read_text()


def test_tensorboard_reads_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    assert main(compare(out, steps=10)) == 0
    events = EventAccumulator(str(out / RUN / "tensorboard"))
    events.Reload()
    logged = [line for line in lines(out / RUN) if "train_loss" in line]
    curve = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert [step for step, _ in curve] == [line["step"] for line in logged]
    assert [value for _, value in curve] == pytest.approx([line["train_loss"] for line in logged], rel=1e-5)
