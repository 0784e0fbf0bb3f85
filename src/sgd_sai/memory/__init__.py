"""Exact bytes of training a model with any of a dozen optimizers, before anything is allocated.

Arithmetic on shapes and dtypes alone, checked against what the optimizers really allocate.

    optimizers   those of `sgd_sai.peers` whose bytes are known, as formulas
    parameters   a model → what the formulas need to know of its parameters
    planner      plan: parameters, gradients, state, temporaries; sharding
    models       a name, a config.json or a factory → a model on the meta device
    paper        the paper's table of state, side by side
    command      `sgd-sai memory`
"""

from sgd_sai.memory.models import MODELS, load
from sgd_sai.memory.planner import Plan, plan

__all__ = ["MODELS", "Plan", "load", "plan"]
