"""A checkpoint is taken over whole or not at all: one line, exit code 2, and nothing of the run changes."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from lab_commands import compare

from run_files import files_of, set_status
from sgd_sai.cli import main
from sgd_sai.lab.faults import DamagedRun
from sgd_sai.lab.records import CHECKPOINT, Record, RunConfig
from sgd_sai.lab.runs import checkpoint

RUN = "cnn-sgd-sai-0"
STEPS = 2


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a run that was killed between its last checkpoint and its record."""
    out = tmp_path_factory.mktemp("ended") / "out"
    assert main(compare(out, steps=STEPS)) == 0
    set_status(out / RUN, "interrupted")
    return out


@pytest.fixture
def out(ended, tmp_path):
    """A copy of it."""
    return shutil.copytree(ended, tmp_path / "out")


def resumed(out):
    return main(compare(out, "--resume", steps=STEPS))


def refused(out, capsys):
    """The one line that resuming prints; it leaves the run as it is."""
    before = files_of(out / RUN)
    capsys.readouterr()
    assert resumed(out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sgd-sai: {out / RUN / CHECKPOINT}: not ")
    assert files_of(out / RUN) == before
    return line


def adamw(saved):
    model = [torch.nn.Parameter(torch.zeros(2))]
    return {**saved, "optimizer": torch.optim.AdamW(model).state_dict()}


def with_model(change):
    def changed(saved):
        name, value = next((name, value) for name, value in saved["model"].items() if value.ndim == 4)
        return {**saved, "model": {**saved["model"], **change(name, value)}}

    return changed


def without(key):
    return lambda saved: {name: value for name, value in saved.items() if name != key}


def with_entry(**entry):
    return lambda saved: {**saved, **entry}


def of_another_run(saved):
    return {**saved, "identity": {**saved["identity"], "lr": 0.25}}


def without_a_tensor(saved):
    return {**saved, "model": dict(list(saved["model"].items())[1:])}


OTHER_BLOCKS = json.dumps({"d": {"w": 1}, "steps": {"1": [1.0]}})

CHANGES = {
    "empty model": (with_entry(model={}), "is missing, not"),
    "a tensor less": (without_a_tensor, "is missing, not"),
    "a tensor more": (with_model(lambda name, value: {"more": value}), "not in the model"),
    "another shape": (with_model(lambda name, value: {name: value[:1]}), "(1, "),
    "another dtype": (with_model(lambda name, value: {name: value.double()}), "float64"),
    "model is a list": (with_entry(model=[]), "model is []; allowed: an object"),
    "a tensor is a number": (with_model(lambda name, value: {name: 1.0}), "allowed: Tensor"),
    "no optimizer": (without("optimizer"), "it lacks 'optimizer'"),
    "of AdamW": (adamw, ""),
    "of another run": (of_another_run, "it is of a run with lr 0.25, not 0.5"),
    "no step": (without("step"), "it lacks 'step'"),
    "too many steps": (with_entry(step=1000), "step 1000 of 2"),
    "step 0": (with_entry(step=0), "step is 0; allowed: ≥ 1"),
    "negative step": (with_entry(step=-1), "step is -1"),
    "half a step": (with_entry(step=1.5), "step is 1.5; allowed: an integer"),
    "step is true": (with_entry(step=True), "step is True"),
    "endless seconds": (with_entry(seconds=float("inf")), "seconds is inf; allowed: a finite number"),
    "negative bytes": (with_entry(metrics_bytes=-1), "metrics_bytes is -1"),
    "no generator": (without("rng"), "it lacks 'rng'"),
    "another generator": (with_entry(rng=torch.zeros(3)), ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_checkpoint_of_this_run_is_refused(change, out, capsys):
    """Also where it is sealed: it was written so."""
    made, reason = CHANGES[change]
    saved = torch.load(out / RUN / CHECKPOINT, weights_only=True)
    torch.save(made(saved), out / RUN / CHECKPOINT)
    assert reason in refused(out, capsys)


def test_flipped_bits_are_seen_wherever_they_are(out, capsys):
    path = out / RUN / CHECKPOINT
    whole = path.read_bytes()
    loaded = 0
    for place in range(len(whole) // 20, len(whole) - 72, len(whole) // 8):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            torch.load(path, weights_only=True)
            loaded += 1
        except Exception:
            pass
        assert "its sha256 differs" in refused(out, capsys)
    assert loaded > 4  # torch does not see them
    path.write_bytes(whole)
    assert resumed(out) == 0


def test_a_checkpoint_of_before_of_another_optimizer_is_refused(tmp_path):
    """It does not say whose it is. Without this, the next step would miss its options."""
    model = torch.nn.Linear(3, 2)
    config = RunConfig("cnn", "sgd", 0, STEPS, 0.5, None, 1)
    progress = {"step": 1, "seconds": 1.0, "metrics_bytes": 0}
    checkpoint.save(tmp_path, model, torch.optim.AdamW(model.parameters()), config, "none", progress)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    torch.save(without("identity")(saved), tmp_path / CHECKPOINT)
    adamw, sgd = torch.optim.AdamW(model.parameters()), torch.optim.SGD(model.parameters())
    assert checkpoint.restore(tmp_path, model, adamw, config, "none") == progress
    with pytest.raises(DamagedRun, match="of another optimizer, without 'dampening'"):
        checkpoint.restore(tmp_path, model, sgd, config, "none")


@pytest.mark.parametrize("content", ["a folder", b"", b"\x00" * 1000, "a pickle"])
def test_what_is_no_checkpoint_at_all_is_refused(content, out, capsys):
    path = out / RUN / CHECKPOINT
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content == "a pickle":
        torch.save({"step": 1, "code": RUN.encode()}, path)
    else:
        path.write_bytes(content)
    refused(out, capsys)


def test_a_checkpoint_of_before_goes_on(out):
    """Without sha256, and without the run's identity."""
    path = out / RUN / CHECKPOINT
    saved = torch.load(path, weights_only=True)
    torch.save(without("identity")(saved), path)
    assert resumed(out) == 0
    assert Record.read(out / RUN).status == "finished"


def test_a_checkpoint_without_its_record_is_left_alone(out, capsys):
    """With another learning rate, it would train on from weights that are not its own."""
    (out / RUN / "run.json").unlink()
    before = files_of(out / RUN)
    capsys.readouterr()
    assert main(compare(out, "--resume", steps=STEPS, lr="0.1")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"sgd-sai: {out / RUN / 'run.json'}: is missing beside {CHECKPOINT}; remove its folder"
    assert files_of(out / RUN) == before


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("metrics.jsonl", lambda text: text[:-5], "bytes, where the checkpoint beside it knows"),
        ("metrics.jsonl", lambda text: text.replace('"step": 2', '"step": 0'), "step 0 follows step 1"),
        ("gsnr.json", lambda text: text.replace('"1":', '"one":'), "steps is 'one'; allowed: an integer"),
        (
            "gsnr.json",
            lambda text: OTHER_BLOCKS,
            "blocks are not those",
        ),
    ],
)
def test_what_lies_beside_a_checkpoint_fits_it(file, change, reason, out, capsys):
    path = out / RUN / file
    path.write_text(change(path.read_text()))
    before = files_of(out / RUN)
    capsys.readouterr()
    assert resumed(out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sgd-sai: {path}: not ")
    assert reason in line
    assert files_of(out / RUN) == before


def test_metrics_behind_a_link_are_not_cut(out, tmp_path, capsys):
    """Nor is a pipe waited for: what goes on from nothing looks at them as well."""
    target, path = tmp_path / "target", out / RUN / "metrics.jsonl"
    target.write_text("of another")
    (out / RUN / CHECKPOINT).unlink()
    for reason, make in {
        "a link": lambda: path.symlink_to(target),
        "no file": lambda: os.mkfifo(path),
    }.items():
        path.unlink()
        make()
        record = (out / RUN / "run.json").read_bytes()
        capsys.readouterr()
        assert resumed(out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"sgd-sai: {path}: not the metrics of a run")
        assert reason in line
        assert target.read_text() == "of another"
        assert (out / RUN / "run.json").read_bytes() == record


def test_a_report_that_fails_too_does_not_hide_why_a_run_has_failed(out, capsys):
    (out / RUN / CHECKPOINT).write_bytes(b"garbage")
    (out / "other").mkdir()
    (out / "other" / "run.json").write_text("{", "utf-8")
    refused(out, capsys)
