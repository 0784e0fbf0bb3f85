"""The memory planner against what real models, optimizers, the profiler and FSDP2 really allocate."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from real import DTYPES, KINDS, REAL, after_two_steps, gpt, peer, randomise, state_bytes, trained
from test_models import PUBLISHED
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sgd_sai.memory import load, plan
from sgd_sai.memory.optimizers import PLANNED
from sgd_sai.memory.parameters import parameters
from sgd_sai.peers.parameter import Parameter
from sgd_sai.peers.state_bytes import eight_bit

SGD_SAI = {
    "fp32": "sgd-sai",
    "bf16": "sgd-sai-bf16",
    "8bit": "sgd-sai-8bit",
    "none": "sgd-sai-no-momentum",
}
DOCS = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REAL)
def test_state_is_what_the_optimizer_allocates(kind, dtype, name):
    model = KINDS[kind]().to(DTYPES[dtype])
    randomise(model)
    planned = plan(model, name)
    assert planned.state == state_bytes(after_two_steps(model, name))
    assert planned.parameters == sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned.gradients == sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    assert planned.buffers == sum(b.numel() * b.element_size() for b in model.buffers())
    with torch.device("meta"):
        assert plan(KINDS[kind](), name, dtype=dtype) == planned


def test_every_entry_is_compared_with_its_optimizer():
    """Those of flashoptim, which needs a GPU, in peers/test_flashoptim.py."""
    assert {*REAL, "flash-sgd", "flash-adamw"} == set(PLANNED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize(("state_dtype", "name"), SGD_SAI.items())
def test_state_of_sgd_sai_in_other_dtypes(dtype, state_dtype, name):
    model = nn.ParameterList(torch.randn(n, dtype=dtype) for n in (7, 2048, 4095, 4096, 5000))
    randomise(model)
    assert plan(model, name) == plan(model, "sgd-sai", state_dtype=state_dtype)
    assert plan(model, name).state == state_bytes(after_two_steps(model, name))


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


@pytest.mark.parametrize("name", ["adamw", "sgd-sai"])
def test_lora_pays_for_what_trains(name, tmp_path, monkeypatch):
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
    planned = plan(meta, name)
    assert planned.state == state_bytes(after_two_steps(model, name))
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
    "sgd-no-momentum": lambda model: torch.optim.SGD(model.parameters(), foreach=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), momentum=0.9, foreach=True),
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
@pytest.mark.parametrize("name", SGD_SAI.values())
def test_a_step_of_sgd_sai_allocates_a_bounded_amount(name, dtype):
    model = nn.ParameterList(torch.randn(4096, 1024, dtype=DTYPES[dtype]) for _ in range(6))
    randomise(model)
    optimizer = REAL[name](model)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    optimizer.step()
    assert plan(model, name).temporaries == 0
    assert peak(optimizer.step) <= 32 * 2**20


def test_every_other_entry_leaves_temporaries_open():
    known = {name for name, (_, memory) in PLANNED.items() if memory.temporaries is not None}
    assert known == {*TEMPORARIES, *SGD_SAI.values()}
    assert plan(gpt(), "muon").temporaries is None


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_release_keeps_the_largest_gradient(tied):
    model = gpt(tied, vocabulary=4000)
    tokens = torch.zeros(1, 1, dtype=torch.long)  # next to no activations
    loss = model(tokens).logits.square().mean()
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda param: setattr(param, "grad", None))
    planned = plan(model, "sgd-no-momentum", gradient_release=True)
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
    for name in ("adamw", "sgd", "sgd-sai-8bit"):
        torch.manual_seed(0)
        model = gpt()
        planned = plan(model, name, world_size=2, shard="fsdp")
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
        tokens = torch.arange(8)[None]
        model(tokens, labels=tokens).loss.backward()
        optimizer = REAL[name](model)
        optimizer.step()

        def local(tensors):
            tensors = filter(torch.is_tensor, tensors)
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


def test_importing_the_planner_needs_torch_alone():
    code = (
        "import torch, sys; before = set(sys.modules); import sgd_sai.memory; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "assert new <= {'sgd_sai', *sys.stdlib_module_names}, new"
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
