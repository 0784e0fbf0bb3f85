"""Exact bytes of training a model with any of a dozen optimizers, before anything is allocated.

Arithmetic on shapes and dtypes alone, checked against what the optimizers really allocate.

    parameters   what a plan knows of a model
    optimizers   the registry: what each optimizer allocates, as a formula
    planner      plan: parameters, gradients, state, temporaries; sharding
    models       a name, a config.json or a factory → a model on the meta device
    paper        the paper's table of state, side by side
    command      `sgd-sai memory`
"""

from sgd_sai.memory.command import add_arguments, run
from sgd_sai.memory.models import MODELS, load
from sgd_sai.memory.optimizers import OPTIMIZERS, Entry
from sgd_sai.memory.planner import Plan, plan

__all__ = ["MODELS", "OPTIMIZERS", "Entry", "Plan", "add_arguments", "load", "plan", "run"]
