"""Recognition: how much a student listens to its task and how much to its teachers, and to which part of what they say.

Wider than `loss_weights`, which stays around the defaults: the task's own weight moves too, and the temperature. What a
sweep of it found on 25,000 pictures of CIFAR-10 is in docs/recognition_terms.md.
"""

from __future__ import annotations

SOFT = {
    "method.task": ("loguniform", 0.03, 1.0),
    "method.soft": ("loguniform", 0.1, 10.0),
    "method.temperature": ("choice", 2.0, 4.0, 8.0),
}
METHODS = {
    "scratch": "distillation: method scratch listens to no teacher; name another method",
    "kd": SOFT,
    "rkd": {
        **SOFT,
        "method.feature": ("loguniform", 0.1, 100.0),
        "method.pairwise": ("loguniform", 0.1, 100.0),
        "method.mmd": ("loguniform", 0.03, 10.0),
        "method.distances": ("loguniform", 0.1, 100.0),
        "method.angles": ("loguniform", 0.1, 100.0),
        "method.contrast": ("loguniform", 0.1, 30.0),
    },
    "horkd": {
        **SOFT,
        "method.order1": ("loguniform", 0.1, 100.0),
        "method.order2": ("loguniform", 0.1, 100.0),
        "method.order3": ("loguniform", 0.1, 100.0),
        "method.group": ("loguniform", 0.1, 100.0),
        "method.contrast": ("loguniform", 0.1, 30.0),
    },
}
TASKS = ("classification", "verification", "retrieval", "segmentation")
BY = {("task", "method.name"): {(task, method): space for task in TASKS for method, space in METHODS.items()}}
NOT_FROM_ZERO = tuple(
    sorted(
        {path for space in METHODS.values() if isinstance(space, dict) for path in space}
        - {"method.temperature"}
    )
)
