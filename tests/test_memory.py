"""The memory planner against what real models, optimizers, the profiler and FSDP2 really allocate."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sgd_sai import SGDSaI, cli
from sgd_sai.memory import MODELS, OPTIMIZERS, load, plan
from sgd_sai.memory.optimizers import eight_bit
from sgd_sai.memory.paper import allocated, compare
from sgd_sai.memory.parameters import Parameter, parameters

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "memory.md").read_text()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cnn() -> nn.Module:
    shape = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**shape, num_labels=10))


def vit() -> nn.Module:
    shape = {"hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 100}
    config = transformers.ViTConfig(**shape, image_size=16, patch_size=4, num_labels=10)
    return transformers.ViTForImageClassification(config)


def gpt(tied: bool = True, vocabulary: int = 101) -> nn.Module:
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": vocabulary}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **tokens))


KINDS = {"cnn": cnn, "vit": vit, "gpt": gpt}


def randomise(model: nn.Module) -> None:
    """No tensor all zeros, and a random gradient for all that train."""
    for param in model.parameters():
        nn.init.normal_(param.data)
        if param.requires_grad:
            param.grad = torch.randn_like(param)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def muon_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    hidden = [p for p in trained(model) if p.dim() == 2 and not any(p is e for e in embeddings)]
    rest = [p for p in trained(model) if not any(p is h for h in hidden)]
    return [torch.optim.Muon(hidden), torch.optim.AdamW(rest)] if hidden else [torch.optim.AdamW(rest)]


def adam_mini(model: nn.Module) -> torch.optim.Optimizer:
    names = [
        # It takes no tensor but a matrix by these names.
        (f"tensor.{i}" if "embed" in name and param.dim() != 2 and "bias" not in name else name, param)
        for i, (name, param) in enumerate(model.named_parameters())
    ]
    heads = {}
    if hasattr(model.config, "num_attention_heads"):
        heads = {"dim": model.config.hidden_size, "n_heads": model.config.num_attention_heads}
    return peer("adam_mini").Adam_mini(names, verbose=False, **heads)


def peer(name: str):
    pytest.importorskip(name)
    return importlib.import_module(name)


REAL = {
    "adamw": lambda model: torch.optim.AdamW(trained(model)),
    "adam": lambda model: torch.optim.Adam(trained(model)),
    "sgd": lambda model: torch.optim.SGD(trained(model)),
    "sgd-momentum": lambda model: torch.optim.SGD(trained(model), momentum=0.9),
    "adafactor": lambda model: torch.optim.Adafactor(trained(model)),
    "muon": muon_and_adamw,
    "adam-mini": adam_mini,
    "prodigy": lambda model: peer("prodigyopt").Prodigy(trained(model)),
    "adam-8bit": lambda model: peer("bitsandbytes").optim.AdamW8bit(trained(model)),
    ("sgd-sai", "fp32"): lambda model: SGDSaI(trained(model)),
    ("sgd-sai", "bf16"): lambda model: SGDSaI(trained(model), state_dtype=torch.bfloat16),
    ("sgd-sai", "8bit"): lambda model: SGDSaI(trained(model), state_dtype="8bit"),
    ("sgd-sai", "none"): lambda model: SGDSaI(trained(model), momentum=0.0),
}


def state_bytes(optimizers: object) -> int:
    """numel · element size of every tensor in the state; one that several parameters share once."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    tensors = {
        id(value): value
        for optimizer in optimizers
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def after_two_steps(model: nn.Module, key: object):
    optimizers = REAL[key](model)
    for _ in range(2):
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()
    return optimizers


def arguments(key: object) -> dict[str, str]:
    return {"optimizer": key} if isinstance(key, str) else {"optimizer": key[0], "state_dtype": key[1]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", REAL, ids=str)
def test_state_is_what_the_optimizer_allocates(kind, dtype, key):
    model = KINDS[kind]().to(DTYPES[dtype])
    randomise(model)
    planned = plan(model, **arguments(key))
    assert planned.state == state_bytes(after_two_steps(model, key))
    assert planned.parameters == sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned.gradients == sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    assert planned.buffers == sum(b.numel() * b.element_size() for b in model.buffers())
    with torch.device("meta"):
        assert plan(KINDS[kind](), dtype=dtype, **arguments(key)) == planned


def test_every_entry_is_compared_with_its_optimizer():
    compared = [key if isinstance(key, tuple) else (key, None) for key in REAL]
    assert sorted(map(str, compared)) == sorted(str((e.name, e.state_dtype)) for e in OPTIMIZERS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize("state_dtype", ["fp32", "bf16", "8bit", "none"])
def test_state_of_sgd_sai_in_other_dtypes(dtype, state_dtype):
    model = nn.ParameterList(torch.randn(n, dtype=dtype) for n in (7, 2048, 4095, 4096, 5000))
    randomise(model)
    key = ("sgd-sai", state_dtype)
    assert plan(model, **arguments(key)).state == state_bytes(after_two_steps(model, key))


def test_eight_bit_state_is_bitsandbytes():
    optim = peer("bitsandbytes").optim
    for numel in (1, 4095, 4096, 4097, 6464, 10_000):
        param = nn.Parameter(torch.randn(numel))
        param.grad = torch.randn(numel)
        optimizer = optim.SGD8bit([param], lr=0.1, momentum=0.9)
        optimizer.step()
        tables = 1024 if numel >= 4096 else 0
        assert state_bytes(optimizer) == eight_bit(numel) + tables


def test_prodigy_saves_the_initial_value_of_tensors_that_are_zero():
    model = gpt()
    randomise(model)
    zero = [param for param in model.parameters() if param.dim() == 1]
    for param in zero:
        param.data.zero_()
    saved = sum((param.numel() - 1) * param.element_size() for param in zero)
    assert state_bytes(after_two_steps(model, "prodigy")) == plan(model, "prodigy").state - saved


def test_a_factory_that_gives_batches_too(tmp_path, monkeypatch):
    """One factory serves `sgd-sai gsnr`, `lr-find` and `memory`."""
    (tmp_path / "with_batches.py").write_text(
        "import torch\n\ndef factory():\n    return torch.nn.Linear(3, 2), [torch.ones(1, 3)]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert sum(param.numel() for param in load("with_batches:factory").parameters()) == 8


@pytest.mark.parametrize("key", ["adamw", ("sgd-sai", "fp32")], ids=str)
def test_lora_pays_for_what_trains(key, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    (tmp_path / "lora_factory.py").write_text(
        "import peft, transformers\n"
        "def model():\n"
        "    shape = dict(n_embd=64, n_layer=2, n_head=4, n_positions=16, vocab_size=101)\n"
        "    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))\n"
        "    config = peft.LoraConfig(r=4, target_modules=['c_attn'], fan_in_fan_out=True)\n"
        "    return peft.get_peft_model(base, config)\n"
    )
    monkeypatch.chdir(tmp_path)
    meta = load("lora_factory:model")
    assert all(param.is_meta for param in meta.parameters())
    model = importlib.import_module("lora_factory").model()
    randomise(model)
    planned = plan(meta, **arguments(key))
    assert planned.state == state_bytes(after_two_steps(model, key))
    assert planned.gradients == 4 * sum(param.numel() for param in trained(model))
    assert planned.parameters == 4 * sum(param.numel() for param in model.parameters())
    assert planned.gradients < planned.parameters / 20


def peak(call) -> int:
    """Bytes that `call` has allocated at its peak beyond what was there, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


TEMPORARIES = {  # as torch chooses on a GPU
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), foreach=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), foreach=True),
    "sgd-momentum": lambda model: torch.optim.SGD(model.parameters(), momentum=0.9, foreach=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", TEMPORARIES)
def test_temporaries_are_what_the_profiler_sees(optimizer, dtype):
    model = gpt().to(DTYPES[dtype])
    randomise(model)
    real = TEMPORARIES[optimizer](model)
    real.step()
    assert 0 <= peak(real.step) - plan(model, optimizer).temporaries <= 64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("state_dtype", ["fp32", "bf16", "8bit", "none"])
def test_a_step_of_sgd_sai_allocates_a_bounded_amount(state_dtype, dtype):
    model = nn.ParameterList(torch.randn(4096, 1024, dtype=DTYPES[dtype]) for _ in range(6))
    randomise(model)
    optimizer = REAL["sgd-sai", state_dtype](model)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    optimizer.step()
    assert plan(model, state_dtype=state_dtype).temporaries == 0
    assert peak(optimizer.step) <= 32 * 2**20


def test_every_other_entry_leaves_temporaries_open():
    known = {entry.name for entry in OPTIMIZERS if entry.temporaries is not None}
    assert known == {*TEMPORARIES, "sgd-sai"}
    assert plan(gpt(), "muon").temporaries is None


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_release_keeps_the_largest_gradient(tied):
    model = gpt(tied, vocabulary=4000)
    tokens = torch.zeros(1, 1, dtype=torch.long)  # next to no activations
    loss = model(tokens).logits.square().mean()
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda param: setattr(param, "grad", None))
    planned = plan(model, "sgd", gradient_release=True)
    assert planned.gradients == 4000 * 64 * 4 * (3 if tied else 1)
    assert planned.gradients <= peak(loss.backward) <= 1.1 * planned.gradients


def test_gradient_release_steps_one_parameter_at_a_time():
    model = gpt(tied=False)
    released = plan(model, "adamw", gradient_release=True)
    assert released.temporaries == max(4 * param.numel() for param in model.parameters())
    assert released.state == plan(model, "adamw").state
    with pytest.raises(ValueError, match="prodigy, whose step needs every gradient"):
        plan(model, "prodigy", gradient_release=True)


def fsdp_rank(rank: int, file: str) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for name in ("adamw", "sgd-momentum"):
        torch.manual_seed(0)
        model = gpt()
        planned = plan(model, name, world_size=2, shard="fsdp")
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
        tokens = torch.arange(8)[None]
        model(tokens, labels=tokens).loss.backward()
        optimizer = REAL[name](model)
        optimizer.step()

        def local(tensors):
            own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
            return sum(tensor.numel() * tensor.element_size() for tensor in own)

        found = {
            "parameters": local(model.parameters()),
            "gradients": local(param.grad for param in model.parameters()),
            "state": local(value for entries in optimizer.state.values() for value in entries.values()),
        }
        for key, size in found.items():
            allowed = getattr(planned, key)
            assert size == allowed if rank == 0 else size < allowed, (name, key, size, allowed)
    dist.destroy_process_group()


def test_fsdp_shards_are_those_of_the_first_rank(tmp_path):
    torch.multiprocessing.spawn(fsdp_rank, (str(tmp_path / "store"),), nprocs=2)


def test_zero_divides_what_it_says():
    whole = plan(gpt(), "adamw")
    ranks = {shard: plan(gpt(), "adamw", world_size=3, shard=shard) for shard in ("zero1", "zero2", "zero3")}
    assert plan(gpt(), "adamw", world_size=3) == whole

    def third(size: int) -> int:
        return -(-size // 3)

    expected = replace(whole, state=third(whole.state), temporaries=third(whole.temporaries))
    assert ranks["zero1"] == expected
    assert ranks["zero2"] == (expected := replace(expected, gradients=third(whole.gradients)))
    assert ranks["zero3"] == replace(expected, parameters=third(whole.parameters))


def test_a_shard_rounds_its_rows_up():
    assert Parameter("w", (5, 7), torch.float32).shard(2).shape == (3, 7)
    assert Parameter("w", (1, 7), torch.float32).shard(4).shape == (1, 7)
    assert Parameter("w", (), torch.float32).shard(4).shape == ()


PUBLISHED = {  # numbers of parameters of the published checkpoints
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_514_298,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-l16": 304_326_632,
    "vit-h14": 632_045_800,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", MODELS)
def test_built_in_models_are_the_published_ones(name):
    model = load(name)
    assert sum(param.numel() for param in model.parameters()) == PUBLISHED[name]
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_config_is_the_model_that_it_describes(tmp_path):
    for model in (cnn(), vit(), gpt()):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(tmp_path)
        assert plan(load(str(tmp_path))) == plan(load(str(tmp_path / "config.json"))) == plan(model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert plan(load(str(tmp_path)), dtype="fp32") == plan(gpt())


def test_headline_of_the_7b_model():
    model = load("llama2-7b")
    count = PUBLISHED["llama2-7b"]
    lean = plan(model, dtype="bf16", state_dtype="8bit", gradient_release=True)
    assert lean.total / count == pytest.approx(3, abs=0.06)
    assert lean.total < 24 * 2**30
    usual = plan(model, "adamw")
    usual_bytes = usual.parameters + usual.gradients + usual.state
    assert usual_bytes / count == pytest.approx(16, abs=1e-3)
    for size in (usual_bytes, plan(model).total, lean.total):
        assert f"| {size / count:.3g} | {size / 2**30:.2f} GiB |" in DOCS


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
    assert {each["optimizer"] for each in record["plans"]} == {e.name for e in OPTIMIZERS} - {"prodigy"}
    assert {each["fits"] for each in record["plans"]} == {True, False}


def test_command_draws_the_same_table_with_rich(capsys, monkeypatch):
    pytest.importorskip("rich")
    plain = run(capsys, "gpt2", "--optimizer", "adamw,sgd-sai", "--state-dtype", "8bit")[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    drawn = run(capsys, "gpt2", "--optimizer", "adamw,sgd-sai", "--state-dtype", "8bit")[1]
    figure = r"\d+\.\d\d [GMK]iB"
    assert re.findall(figure, drawn) == re.findall(figure, plain) != []
    assert "SGD-SaI, 8-bit m" in drawn


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
    "factories:broken": "is a int; allowed: a callable",
    "factories:nothing": "cannot import 'factories:nothing': AttributeError",
    "nowhere:model": "cannot import 'nowhere:model': ModuleNotFoundError",
    "factories:lazy": "parameter 'weight' is lazy",
    "gpt2 --optimizer adam,lion": "optimizer: given 'lion'; allowed: adamw, ",
    "gpt2 --optimizer adamw --state-dtype bf16": "state_dtype: given 'bf16' for adamw; allowed: none",
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
    ("given", "line"),
    [
        ({"optimizer": "lion"}, "optimizer: given 'lion'"),
        ({"dtype": "fp8"}, "dtype: given 'fp8'; allowed: fp32, bf16, fp16"),
        ({"world_size": 1.5}, "world_size: given 1.5"),
        ({"shard": "zero9"}, "shard: given 'zero9'; allowed: none, zero1, zero2, zero3, fsdp"),
        ({"state_dtype": "int4"}, "state_dtype: given 'int4' for sgd-sai; allowed: fp32, bf16, 8bit, none"),
    ],
)
def test_plan_names_the_argument(given, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        plan(gpt(), **given)


def test_the_paper_s_table(capsys):
    rows = list(compare())
    assert len(rows) == 20
    for row in rows:
        state, counted = row.state / 2**30, row.allocated / 2**30
        assert state == plan(load(row.model), row.optimizer).state / 2**30
        if row.verdict == "agrees":
            assert round(state, 2) == row.paper or abs(row.deviation) <= 0.02
        elif row.verdict == "allocator":
            assert round(counted, 2) == row.paper or abs(row.deviation_allocated) <= 0.02
    differs = {(row.model, row.optimizer) for row in rows if row.verdict == "differs"}
    assert differs == {(model, "adam-mini") for model in ("vit-h14", "gpt2-xl", "llama2-7b")}
    for verdict, count in Counter(row.verdict for row in rows).items():
        assert f"- **{verdict}**: {count} of 20" in DOCS
    recorded = ROOT / "benchmarks" / "results" / "memory" / "paper.json"
    assert run(capsys, "--paper", "--json")[1] == recorded.read_text()


def test_adam_mini_on_gpt2_is_the_paper_s_half():
    model = load("gpt2")
    share = plan(model, "adam-mini").state / plan(model, "adamw").state
    assert round(100 * share, 1) == 50.1


def test_rounding_of_the_cuda_allocator():
    mib = 2**20
    assert allocated([1]) == 512
    assert allocated([513]) == 1024
    assert allocated([int(29.3 * mib)]) == 30 * mib  # less than 1 MiB is not cut off
    assert allocated([int(306.75 * mib)]) == int(306.75 * mib)
    assert allocated([int(9.75 * mib)] * 2) == 20 * mib  # two in a segment, the second with what is left


@pytest.mark.parametrize(
    "words",
    re.findall(r"^    \$ sgd-sai memory (.*)$", DOCS, re.MULTILINE),
)
def test_docs_show_what_the_command_prints(words, capsys):
    code, out, _ = run(capsys, *words.split())
    block = "".join(f"    {line}\n" for line in out.splitlines())
    assert code == 0
    assert f"    $ sgd-sai memory {words}\n{block}" in DOCS


def test_importing_the_planner_needs_torch_alone():
    code = (
        "import torch, sys; before = set(sys.modules); import sgd_sai.memory; "
        "assert not {'transformers', 'numpy', 'rich'} & (set(sys.modules) - before)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parameters_know_their_place():
    found = {param.name: param for param in parameters(gpt())}
    assert found["transformer.wte.weight"].tied
    assert [name for name, param in found.items() if param.embedding] == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
    ]
    assert {param.head_numel for param in found.values()} == {64 * 64 // 4}
