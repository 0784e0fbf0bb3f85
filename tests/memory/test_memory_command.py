"""`sgd-sai memory`: its table, its record, its errors, and the docs that show them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from sgd_sai import cli
from sgd_sai.memory import load, plan
from sgd_sai.memory.optimizers import PLANNED

pytest.importorskip("transformers")

DOCS = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["memory", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_prints_plans_least_first(capsys, tmp_path):
    out = tmp_path / "plans.json"
    words = ("gpt2", "--dtype", "bf16", "--gradient-release", "--fits", "500MiB", "--out", str(out))
    code, text, _ = run(capsys, *words)
    record = json.loads(out.read_text())
    assert code == 0
    assert run(capsys, *words, "--json")[1] == out.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json"]
    model, totals = load("gpt2"), [each["total"] for each in record["plans"]]
    assert totals == sorted(totals)
    for each in record["plans"]:
        again = plan(
            model, each["optimizer"], state_dtype=each["state_dtype"], dtype="bf16", gradient_release=True
        )
        assert each == asdict(again) | {"total": again.total, "fits": again.total <= 500 * 2**20}
        (line,) = re.findall(rf"^{re.escape(each['label'])} {{2,}}.*$", text, re.MULTILINE)
        assert line.endswith("yes" if each["fits"] else "no")
    expected = {(memory.choice_of or name, memory.state_dtype) for name, (_, memory) in PLANNED.items()}
    expected -= {("prodigy", None)}
    assert {(each["optimizer"], each["state_dtype"]) for each in record["plans"]} == expected
    assert {each["fits"] for each in record["plans"]} == {True, False}


def test_command_draws_the_same_table_with_rich(capsys, monkeypatch):
    pytest.importorskip("rich")
    plain = run(capsys, "gpt2", "--optimizer", "adamw,sgd-sai", "--state-dtype", "8bit")[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    drawn = run(capsys, "gpt2", "--optimizer", "adamw,sgd-sai", "--state-dtype", "8bit")[1]
    figure = r"\d+\.\d\d [GMK]iB"
    assert re.findall(figure, drawn) == re.findall(figure, plain) != []
    assert "SGD-SaI, 8 bit" in drawn


FACTORIES = """
from torch import nn
broken = 3
def raises(): raise RuntimeError("no\\nweights")
def number(): return 4
def lazy(): return nn.LazyLinear(3)
"""


WRONG = {
    "": "MODEL is missing",
    "gpt5": "model: given 'gpt5'; allowed: gpt2, ",
    "missing.json": "cannot read missing.json: No such file",
    "broken.json": "broken.json is not JSON",
    "list.json": "list.json has no 'model_type'",
    "foreign.json": "model_type 'nonesuch', which transformers does not know",
    "odd.json": "odd.json cannot be built",
    "factories:raises": "factories:raises cannot be built on the meta device: RuntimeError: no weights",
    "factories:number": "gives a int; allowed: an nn.Module",
    "factories:broken": "factories:broken: is a int; allowed: a callable",
    "factories:nothing": "importing factories:nothing failed: AttributeError",
    "nowhere:model": "importing nowhere:model failed: ModuleNotFoundError",
    "factories:lazy": "parameter 'weight' is lazy",
    "gpt2 --optimizer adam,lion": "optimizer: given 'lion'; allowed: sgd-sai, ",
    "gpt2 --optimizer adamw --state-dtype bf16": "state_dtype: given 'bf16' for adamw; allowed: none",
    "gpt2 --optimizer adamw,sgd-sai-8bit --state-dtype bf16": "given 'bf16' for sgd-sai-8bit; allowed: 8bit",
    "gpt2 --state-dtype int4": "--state-dtype: invalid choice",
    "gpt2 --dtype fp8": "--dtype: invalid choice",
    "gpt2 --world-size 0": "world_size: given 0; allowed: an integer ≥ 1",
    "gpt2 --world-size two": "--world-size: invalid int value",
    "gpt2 --shard zero9": "--shard: invalid choice",
    "gpt2 --shard zero1 --gradient-release": "given with shard='zero1'; allowed: with none or fsdp",
    "gpt2 --optimizer prodigy --gradient-release": "prodigy, whose step needs every gradient",
    "gpt2 --fits 24": "--fits: given '24'; allowed: a number and one of B, ",
    "gpt2 --out nowhere/plan.json": "--out: cannot write nowhere/plan.json: No such file",
    "gpt2 --paper": "--paper: given with the model 'gpt2'",
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_input_is_one_line_and_exit_code_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("factories.py").write_text(FACTORIES)
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("foreign.json").write_text('{"model_type": "nonesuch"}')
    Path("odd.json").write_text('{"model_type": "gpt2", "n_embd": "wide"}')
    code, out, err = run(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("sgd-sai: ")
    assert err.count("\n") == 1
    assert WRONG[words] in err


@pytest.mark.parametrize(
    "words",
    re.findall(r"^    \$ sgd-sai memory (.*)$", DOCS, re.MULTILINE),
)
def test_docs_show_what_the_command_prints(words, capsys):
    code, out, _ = run(capsys, *words.split())
    block = "".join(f"    {line}\n" for line in out.splitlines())
    assert code == 0
    assert f"    $ sgd-sai memory {words}\n{block}" in DOCS


def test_a_choice_of_state_is_a_name_of_its_own_too(capsys):
    words = ("gpt2", "--optimizer")
    whole = run(capsys, *words, "sgd-sai")[1].splitlines()
    assert len(whole) == 2 + 4 + 1
    by_name = run(capsys, *words, "sgd-sai-8bit,sgd-sai-no-momentum,sgd-sai,sgd-sai-bf16")[1].splitlines()
    assert by_name == whole
    assert run(capsys, *words, "sgd-sai-8bit") == run(capsys, *words, "sgd-sai", "--state-dtype", "8bit")


def test_the_noise_of_other_packages_does_not_reach_the_user():
    """transformers imports torchao, where it is installed, which logs warnings."""
    command = [sys.executable, "-m", "sgd_sai.cli", "memory", "gpt2", "--optimizer", "sgd-sai"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ran.stderr == ""
    assert ran.stdout.startswith("gpt2: 124,439,808 parameters")
