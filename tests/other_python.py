"""What tests/test_versions.py has another Python do: `compile` all sources, or `run` the optimizer there.

Run it by hand with `PYTHONPATH=src python3.10 tests/other_python.py run`. Each command prints JSON.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "scripts", "benchmarks", "research", "examples", "tests")
NO_TORCH = 77

#: What modules of the package may lack, as it is in an extra. A name of the standard library is not among
#: them: where that is missing, the fault is ours.
EXTRAS = {
    "datasets", "diffusers", "lightning", "matplotlib", "numpy", "optuna", "PIL", "peft", "plotly", "psutil",
    "rich", "scipy", "sklearn", "tensorboard", "tokenizers", "transformers", "triton",
}  # fmt: skip


def compile_all() -> dict[str, Any]:
    """The number of sources, and the error of each that this Python does not take without a warning."""
    warnings.simplefilter("error")
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    errors = {}
    for path in files:
        try:
            compile(path.read_text("utf-8"), str(path), "exec")
        except (SyntaxError, ValueError, Warning) as error:
            errors[str(path.relative_to(ROOT))] = repr(error)
    return {"files": len(files), "errors": errors}


def import_all() -> dict[str, Any]:
    """Import every module of the package; those for which an extra is missing are named with it."""
    imported, skipped = [], {}
    package = ROOT / "src" / "sgd_sai"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            importlib.import_module(name)
            imported.append(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRAS:
                raise
            skipped[name] = error.name
    return {"imported": len(imported), "skipped": skipped}


def trained(dtype: Any = None, mesh: Any = None, compiled: bool = False, **options: Any) -> list[Any]:
    """Parameters after five steps of fresh gradients, with a save and a load after the third."""
    import torch
    from torch import nn

    from sgd_sai import SGDSaI

    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator).to(dtype) for shape in ((80, 60), (7, 3), (5,))]
    if mesh is not None:
        from torch.distributed.tensor import Shard, distribute_tensor

        starts = [distribute_tensor(start, mesh, [Shard(0)]) for start in starts]
    params = [nn.Parameter(start) for start in starts]
    optimizer = SGDSaI(params, lr=0.1, weight_decay=0.1, **options)
    frames = None
    step: Any = optimizer.step
    if compiled:
        from torch._dynamo.testing import CompileCounter

        frames = CompileCounter()
        step = torch.compile(step, backend=frames)
    for number in range(5):
        if number == 3:
            optimizer.load_state_dict(optimizer.state_dict())
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)  # whole on each rank
        step()
    if frames is not None:
        assert frames.frame_count == 1, f"{frames.frame_count} frames were compiled"
    return [param.detach() if mesh is None else param.full_tensor().detach() for param in params]


def run() -> dict[str, Any]:
    """Import the package, and take steps every way that the CPU has."""
    try:
        import torch
    except ImportError as error:
        print(error)
        sys.exit(NO_TORCH)
    import torch.distributed as dist

    from sgd_sai.distributed.collectives import sum_over_ranks
    from sgd_sai.distributed.layout import Part

    found = {"python": sys.version.split()[0], "torch": torch.__version__, **import_all()}
    truth = trained(foreach=False, fused=False)
    ways: list[dict[str, Any]] = [{}, {"foreach": True}, {"fused": True}]
    compiles = torch._dynamo.is_dynamo_supported()
    ways += [{"compiled": True}] if compiles else []
    for way in ways:
        torch.testing.assert_close(trained(**way), truth, msg=lambda text, way=way: f"{way}: {text}")
    narrow = {"dtype": torch.bfloat16, "state_dtype": "8bit", "rounding": "stochastic"}
    assert all(math.isfinite(p.float().norm().item()) for p in trained(**narrow))
    rows = torch.rand(2, 3)
    assert torch.equal(sum_over_ranks(rows.clone(), [Part(row, 3, ()) for row in rows]), rows)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    torch.testing.assert_close(trained(mesh=mesh), truth)
    dist.destroy_process_group()
    return {**found, "compiles": compiles}


if __name__ == "__main__":
    print(json.dumps({"compile": compile_all, "run": run}[sys.argv[1]]()))
