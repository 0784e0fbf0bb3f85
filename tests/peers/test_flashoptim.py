"""flashoptim, whose kernels run on a GPU alone: it is built as it is, and allocates what the formula says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.gpu.contenders import tensors_of
from sgd_sai.peers import PEERS
from sgd_sai.peers.parameter import Parameter

SHAPES = [(64, 96), (33, 7), (3, 129, 130), (64,), (1,)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_missing_and_says_why() -> None:
    why = PEERS["flash-sgd"].missing()
    assert why is not None
    assert "GPU" in why or "pip install" in why


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["flash-sgd", "flash-adamw"])
def test_bytes_are_those_of_the_formula(name: str, dtype: torch.dtype) -> None:
    peer = PEERS[name]
    if (why := peer.missing()) is not None:
        pytest.skip(why)
    params = [nn.Parameter(torch.randn(shape, device="cuda").to(dtype)) for shape in SHAPES]
    assert peer.plain is not None
    assert peer.memory is not None
    optimizer = peer.plain(params, lr=1e-3)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    held = {
        key: [(tensor.dtype, tensor.numel()) for tensor in tensors_of(value)]
        for param in params
        for key, value in optimizer.state[param].items()
    }
    sizes = [
        tensor.numel() * tensor.itemsize
        for param in params
        for value in optimizer.state[param].values()
        for tensor in tensors_of(value)
    ]
    assert sum(sizes) == peer.memory.state([Parameter("", shape, dtype) for shape in SHAPES]), held
