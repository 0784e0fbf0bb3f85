"""What is installed: a complete wheel, an import that needs torch alone, types that a user can rely on."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").glob("**/*.py"))


def run(*arguments: str | Path, **options: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, env=environment | options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, from a copy of what they are made from."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source)
    return folder / "dist"


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def package_files() -> Iterator[str]:
    for path in (ROOT / "src" / "sgd_sai").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT / "src").as_posix()


def test_the_wheel_holds_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert inside == set(package_files())
    assert {"sgd_sai/py.typed", "sgd_sai/lab/tuned.jsonl"} <= inside
    assert any(name.startswith("sgd_sai/html/template/") for name in inside)


def test_the_source_distribution_holds_every_file_of_the_package(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/src/")[2] for name in archive.getnames()}
    assert set(package_files()) <= inside


def test_the_wheel_asks_for_torch_alone(metadata: Message) -> None:
    required = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert required == ["torch>=2.6"]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~;\s]", requirement)[0]


def needed_by(package: str) -> set[str]:
    """The package and what it needs, as far as it is installed."""
    found, waiting = set[str](), [package]
    while waiting:
        name = waiting.pop()
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            waiting += [name_of(need) for need in requirements if "extra ==" not in need]
    return found


def test_an_install_of_the_wheel_works_with_torch_alone(built: Path, tmp_path: Path) -> None:
    """In an environment of its own that sees this one's torch and what that needs, nothing else."""
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    seen = tmp_path / "seen"
    seen.mkdir()
    for name in needed_by("torch"):
        distribution = importlib.metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (seen / top).symlink_to(distribution.locate_file(top))
    (site / "torch.pth").write_text(str(seen))
    code = """
        import sgd_sai, torch
        param = torch.nn.Parameter(torch.ones(3, 4))
        optimizer = sgd_sai.SGDSaI([param], lr=0.1)
        param.square().sum().backward()
        optimizer.step()
        print(sgd_sai.__file__, param.sum().item())
    """
    where, total = run(python, "-I", "-c", textwrap.dedent(code)).split()
    assert Path(where).is_relative_to(site)
    assert float(total) < 12.0


def optional_modules(metadata: Message) -> set[str]:
    """What the extras install, by import name."""
    extras = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" in need]
    names = {name_of(need).lower().replace("-", "_") for need in extras} - {"sgd_sai"}
    imported_as = {"scikit_learn": "sklearn", "torch_optimi": "optimi", "pytest_xdist": "xdist"}
    return {imported_as.get(name, name) for name in names}


def test_import_loads_nothing_optional(metadata: Message) -> None:
    """What the extras install is refused to whoever asks for it after torch is there."""
    optional = optional_modules(metadata)
    code = f"""
        import sys
        import torch
        torch_has = set(sys.modules)
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {optional!r}:
                    raise AssertionError("import sgd_sai loads " + name)
        sys.meta_path.insert(0, Refuse())
        import sgd_sai
        print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - torch_has}}))
    """
    assert {"optuna", "plotly", "rich", "sklearn", "transformers", "triton"} <= optional
    new = set(run(sys.executable, "-c", textwrap.dedent(code)).split())
    assert new <= {"sgd_sai", *sys.stdlib_module_names}, new


CLIENT = '''
"""What a user's own module, under mypy's strict mode, says about the public API."""

import math

import torch
from torch import nn

import sgd_sai
from sgd_sai import SGD_sai, SGDSaI, Moments, convert_lr, gradient_release, param_groups, transfer_lr

model = nn.Linear(4, 2)
optimizer = SGDSaI(param_groups(model, weight_decay=0.1), lr=torch.tensor(1.0), normalize="rms", split=2)
also: torch.optim.Optimizer = SGD_sai(model.named_parameters(), state_dtype=torch.bfloat16)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)


def closure() -> float:
    return 1.0


def rule(block: Moments) -> float:
    return math.sqrt(block.n)


nothing: None = optimizer.step()
loss: float = optimizer.step(closure)
eta, decay = convert_lr(1e-3, given=False, wanted=True, normalizers=optimizer.param_groups[0])
lr: float = transfer_lr(model, 1e-3).lr + eta + decay
gradient_release(model, SGDSaI(model.parameters(), scale=rule)).remove()
moments: list[Moments] = sgd_sai.measure([[model.weight]])
reveal_type(sgd_sai.g_snr(moments[0]))

SGDSaI(model.parameters(), normalize="largest")  # E: arg-type
SGDSaI(model.parameters(), state_dtype="4bit")  # E: arg-type
SGDSaI(model.parameters(), rounding="up")  # E: arg-type
sgd_sai.g_snr(model.weight)  # E: arg-type
'''


def test_types_from_a_users_side(tmp_path: Path) -> None:
    """Right uses pass mypy --strict; the marked lines are found, and nothing else."""
    client = tmp_path / "client.py"
    client.write_text(CLIENT, "utf-8")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "client.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    found = set(re.findall(r"^client\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE))
    marked = {
        (str(number), match[1])
        for number, line in enumerate(CLIENT.splitlines(), start=1)
        if (match := re.search(r"# E: ([\w-]+)$", line))
    }
    assert found == marked, done.stdout + done.stderr
    assert 'Revealed type is "float"' in done.stdout.replace("builtins.", "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_sources_are_of_the_oldest_python_grammar(path: Path) -> None:
    """No `type` statement, no `except*`; quotes within f-strings are for the Pythons of test_versions.py."""
    ast.parse(path.read_text("utf-8"), feature_version=(3, 10))


def test_versions_agree(metadata: Message) -> None:
    import sgd_sai

    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert sgd_sai.__version__ == metadata["Version"]
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == metadata["Version"]
    assert re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)[1] == metadata["Version"]
