"""Bad input: the error names the argument or the parameter, what was given and what is allowed."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
from torch import nn

from sgd_sai import SGDSaI
from sgd_sai.options import OPTIONS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, r"lr: given -0\.1; allowed: a finite number ≥ 0"),
        ({"lr": math.nan}, ValueError, "lr: given nan"),
        ({"lr": math.inf}, ValueError, "lr: given inf"),
        ({"lr": "0.1"}, TypeError, "lr: given '0.1'"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr: given tensor"),
        ({"lr": torch.ones(2)}, ValueError, r"lr: given a torch.float32 tensor of shape \(2,\)"),
        ({"momentum": 1.0}, ValueError, r"momentum: given 1\.0; allowed: a number in \[0, 1\)"),
        ({"momentum": -0.1}, ValueError, "momentum: given -0.1"),
        ({"momentum": True}, TypeError, "momentum: given True"),
        ({"eps": -1e-8}, ValueError, "eps: given -1e-08"),
        ({"eps": math.nan}, ValueError, "eps: given nan"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay: given -1.0"),
        ({"weight_decay": None}, TypeError, "weight_decay: given None"),
        ({"maximize": 1}, TypeError, "maximize: given 1; allowed: True or False"),
        (
            {"normalize": "max"},
            ValueError,
            "normalize: given 'max'; allowed: True, False, 'rms' or a positive",
        ),
        ({"normalize": 1}, TypeError, "normalize: given 1"),
        ({"normalize": 0.0}, ValueError, "normalize: given 0.0"),
        ({"normalize": math.inf}, ValueError, "normalize: given inf"),
        ({"normalize": None}, TypeError, "normalize: given None"),
        ({"blocks": ["tensor"]}, TypeError, r"blocks: given \['tensor'\]"),
        ({"scale": "snr"}, ValueError, "scale: given 'snr'; allowed: 'gsnr', 'sqrt_d', a callable, or"),
        ({"blocks": "layer"}, ValueError, "blocks: given 'layer'; allowed: 'tensor' or 'group'"),
        ({"split": 0}, ValueError, "split: given 0; allowed: an integer ≥ 1"),
        ({"split": 1.5}, TypeError, "split: given 1.5"),
        (
            {"split": 4},
            ValueError,
            r"split: given 4 for parameter 0 of shape \(6, 2\), whose dim 0 it does not divide",
        ),
        ({"split": 2, "blocks": "group"}, ValueError, "split: given 2 with blocks='group'"),
        ({"split": 2, "measure_first": True}, ValueError, "split: given 2 with measure_first=True"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["default", "group", "added group"])
def test_option_that_is_not_allowed(options: dict, error: type[Exception], message: str, where: str) -> None:
    p = nn.Parameter(torch.zeros(6, 2))
    if where == "default":
        with pytest.raises(error, match=message):
            SGDSaI([p], **options)
    elif where == "group":
        with pytest.raises(error, match=message):
            SGDSaI([{"params": [p], **options}])
    else:
        optimizer = SGDSaI([nn.Parameter(torch.zeros(1))])
        with pytest.raises(error, match=message):
            optimizer.add_param_group({"params": [p], **options})
        assert len(optimizer.param_groups) == 1


def test_every_option_is_in_the_constructor_the_docstring_and_the_table() -> None:
    signature = list(inspect.signature(SGDSaI).parameters)
    assert signature == ["params", *OPTIONS, "process_group"]
    # As getdoc cleans it: Python 3.13 drops the indentation of a docstring, older ones keep it.
    arguments = inspect.getdoc(SGDSaI).partition("Args:")[2].partition("The tutorial listing")[0]
    assert re.findall(r"^    (\w+): ", arguments, re.MULTILINE) == signature


def test_parameter_given_twice() -> None:
    p = nn.Parameter(torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"params: parameter 1 of shape \(6, 2\) is given twice"):
        SGDSaI([p, p])
    with pytest.raises(ValueError, match=r"params: parameter 'again' of shape .* is given twice"):
        SGDSaI([("once", p), ("again", p)])
    with pytest.raises(ValueError, match="is given twice"):
        SGDSaI([{"params": [p]}, {"params": [p]}])


def test_params_that_are_no_parameters() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        SGDSaI([])
    with pytest.raises(TypeError, match="iterable"):
        SGDSaI(torch.zeros(3))
    with pytest.raises(TypeError):
        SGDSaI([1.0])


@pytest.mark.parametrize("given", [0.0, -1.0, math.nan, math.inf])
def test_callable_rule_that_gives_no_positive_number(given: float) -> None:
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    optimizer = SGDSaI([a, b], lr=0.1, scale=lambda moments: given if moments.n == 4 else 1.0)
    a.grad, b.grad = torch.ones(3), torch.ones(4)
    with pytest.raises(ValueError, match=f"scale: it gave {given} .*; allowed: a positive, finite number"):
        optimizer.step()
    assert not a.any()
    assert optimizer.state[a]["gsnr"] == -1.0
