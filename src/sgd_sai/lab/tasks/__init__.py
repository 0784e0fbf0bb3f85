"""The tasks of the study: one file each, at three scales."""

from sgd_sai.lab.tasks import cnn, diffusion, gpt, lora, vit
from sgd_sai.lab.tasks.problem import Problem, Task

_MODULES = (gpt, vit, cnn, lora, diffusion)

#: The tasks at the tiny scale, for two cores: a run takes at most two minutes.
TASKS: dict[str, Task] = {module.TINY.name: module.TINY for module in _MODULES}
#: All scales: "small" is for one GPU and at most ten minutes a run, "paper" is the paper's setting.
SCALES: dict[str, dict[str, Task]] = {
    "tiny": TASKS,
    "small": {module.TINY.name: module.SMALL for module in _MODULES},
    "paper": {module.TINY.name: module.PAPER for module in _MODULES},
}
#: Every task of every scale by its own name, as in "gpt-small".
ALL: dict[str, Task] = {task.name: task for tasks in SCALES.values() for task in tasks.values()}

#: Compared unless others are named.
DEFAULT = ("gpt", "vit", "cnn")

__all__ = ["ALL", "DEFAULT", "SCALES", "TASKS", "Problem", "Task"]
