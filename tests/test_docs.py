"""What the documentation shows runs, and what it names exists."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sgd_sai
from sgd_sai import SGDSaI, measure_scales
from sgd_sai.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """(line, content) of the fenced blocks of a language."""
    text = page.read_text("utf-8")
    for match in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start(2)].count("\n"), textwrap.dedent(match[2])


def what_a_reader_has() -> dict[str, Any]:
    """The names that the pages take for granted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x, y = torch.randn(16, 4), torch.randint(2, (16,))
    return {"model": model, "my_model": model, "x": x, "y": y, "loss_fn": nn.functional.cross_entropy}


#: Its blocks are for several ranks, and run in a test of their own.
FOR_RANKS = "distributed.md"


@every_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks share their names. Files of `examples` stand in {.python}: they run as examples."""
    monkeypatch.chdir(tmp_path)
    names = what_a_reader_has()
    for line, block in fences(page, "python"):
        code = compile("\n" * line + block, page.name, "exec")
        if page.name != FOR_RANKS:
            exec(code, names)


def test_blocks_for_several_ranks_run_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they take for granted. DeepSpeed's own line runs in tests/distributed/test_deepspeed.py."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.optim import ZeroRedundancyOptimizer

    monkeypatch.chdir(tmp_path)
    names = {
        **what_a_reader_has(),
        "SGDSaI": SGDSaI,
        "measure_scales": measure_scales,
        "dist": dist,
        "dcp": dcp,
        "torch": torch,
        "StateDictOptions": StateDictOptions,
        "set_optimizer_state_dict": set_optimizer_state_dict,
    }
    names |= {"functools": functools, "ZeroRedundancyOptimizer": ZeroRedundancyOptimizer, "lr": 0.1}
    names |= {"get_model_state_dict": get_model_state_dict, "path": str(tmp_path / "checkpoint")}
    names |= {"get_optimizer_state_dict": get_optimizer_state_dict, "stage": names["model"]}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for line, block in fences(ROOT / "docs" / FOR_RANKS, "python"):
            ours = "".join(part for part in block.splitlines(keepends=True) if "deepspeed." not in part)
            exec(compile("\n" * line + ours, FOR_RANKS, "exec"), names)
    finally:
        dist.destroy_process_group()
    assert (tmp_path / "checkpoint" / ".metadata").exists()


def shown_commands(page: Path) -> set[str]:
    """What stands after `sgd-sai` in code, inline or in blocks."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    inline = re.findall(r"`(?:\$ )?sgd-sai ([^`\n]+)`", text)
    lines = re.findall(r"^(?:    |)(?:\$ )?sgd-sai ([^`\n]+)$", text, re.MULTILINE)
    return {re.split(r" #|  ", command)[0].strip() for command in [*inline, *lines]}


@every_page
def test_shown_commands_are_understood(page: Path) -> None:
    for shown in shown_commands(page):
        name, *arguments = shlex.split(shown)
        if name.startswith("-") or name == "COMMAND":
            continue
        assert name in COMMANDS, f"{page.name}: sgd-sai {shown}"
        if arguments and not any("…" in word for word in arguments):
            parser = argparse.ArgumentParser()
            importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
            if "--help" not in arguments:
                parser.parse_args(arguments)  # exits, and so fails, where it does not understand


@every_page
def test_named_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:`|^    )make (\w+)", page.read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@every_page
def test_named_tests_exist(page: Path) -> None:
    for file, name in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", page.read_text("utf-8")):
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text("utf-8")))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{page.name} names {file}::{name}"


@every_page
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@every_page
def test_shown_options_exist(page: Path) -> None:
    options = inspect.signature(SGDSaI).parameters
    for _, block in fences(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "SGDSaI",
                "SGD_sai",
            ):
                assert {keyword.arg for keyword in node.keywords} <= set(options), ast.unparse(node)


def test_every_example_is_shown() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    for example in ROOT.glob("examples/*.py"):
        assert f'--8<-- "examples/{example.name}"' in text


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    for name, (_, purpose) in COMMANDS.items():
        assert f"| `sgd-sai {name}` | {purpose} |" in text


def test_every_public_name_is_in_the_reference() -> None:
    """As the function or class itself: a module of the same name would be shown with all that it holds."""
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    shown = {path.rpartition(".")[2]: path for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    for name in set(sgd_sai.__all__) - {"__version__"}:
        assert name in shown or f"`sgd_sai.{name}`" in text, name
    assert not {path for path in shown.values() if path in sys.modules}


def test_the_table_of_ratios_is_that_of_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("gsnr_is_sqrt_d").table
    record = json.loads((ROOT / "benchmarks/results/gsnr_is_sqrt_d.json").read_text("utf-8"))
    assert table(record) in (ROOT / "docs" / "gsnr.md").read_text("utf-8")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    nav = {path.stem for path in (tmp_path / "site").glob("*.html")} - {"404"}
    assert pages == nav
    assert not [
        page.name
        for page in (tmp_path / "site").glob("*.html")
        if re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', page.read_text("utf-8"))
    ], "a page that needs the network"
    texts = {page.stem: page.read_text("utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert not [name for name, text in texts.items() if "arithmatex" in text], "a formula is not MathML"
    assert texts["algorithm"].count('<math display="block">') == 3


def test_every_figure_is_drawn_by_the_command(tmp_path: Path) -> None:
    """From records; the pages show no other picture, and none is left over."""
    drawn = subprocess.run([sys.executable, "-m", "scripts.figures", str(tmp_path)], cwd=ROOT, check=False)
    assert drawn.returncode == 0
    names = {path.name for path in tmp_path.iterdir()}
    names.add("architecture.svg")  # tests/test_architecture.py: drawn from the code, not from records
    assert names == {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    shown = {
        Path(link).name for page in PAGES for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown == names
