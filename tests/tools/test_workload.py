"""A factory that is not as it should be gets one line, from both commands."""

from __future__ import annotations

import pytest
from tool_commands import refused

BAD = {
    "workloads:sparse": "parameter '0.weight': its gradient is sparse (torch.sparse_coo); allowed: dense",
    "workloads:fails": "workloads:fails failed: FileNotFoundError: no such file",
    "workloads:nothing": "workloads:nothing: is a int; allowed: a callable without arguments",
    "workloads:missing": "importing workloads:missing failed: AttributeError",
    "no_such_module:f": "importing no_such_module:f failed: ModuleNotFoundError",
    "resnet": "workload: given 'resnet'; allowed: gpt, vit, cnn",
    "workloads:not_a_pair": "returned a Sequential; allowed: (model, batches)",
    "workloads:vector_loss": "loss: it is a torch.float32 tensor of shape (16, 2); allowed: a tensor of one",
    "workloads:python_loss": "loss: it is a float; allowed",
    "workloads:no_loss": "output has no loss: put labels in the batch",
    "workloads:no_gradients": "gradients: after backward, no parameter of the model has one",
    "workloads:detached": "loss: it depends on no parameter",
    "workloads:zero_gradients": "none of the model's 6 trainable parameters has a finite, non-zero one",
    "workloads:frozen": "its model has no parameter that requires a gradient",
    "workloads:wrong_shape": "the forward pass failed: RuntimeError: mat1 and mat2",
    "workloads:no_batches": "its batches ended after 0",
}


@pytest.mark.parametrize("command", ["gsnr", "lr-find"])
@pytest.mark.parametrize("workload", BAD)
def test_a_bad_workload_gets_one_line(
    command: str, workload: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, [command, workload], BAD[workload])
