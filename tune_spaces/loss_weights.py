"""The weights of each method's loss terms, on a logarithmic scale around the published values or the defaults.

Only the ratio of two weights and the learning rate matter much to Adam. In super-resolution a method's terms all move
and the search sees their ratios; in recognition the task's own weight stays and the others move. Ranges span a factor
of ten to each side, but for PISR's VID, whose best weight depends on the layer and on how its scale is predicted. A
term that the recipe has switched off (weight 0) stays off. A weight with a schedule keeps the schedule's shape: what
moves is its peak.
"""


def _around(middle: float) -> tuple[str, float, float]:
    return ("loguniform", middle / 10, middle * 10)


ALONE = (
    "loss_weights: method scratch has one loss term, and Adam does not feel the length of its gradient; "
    "try train.lr in a space of your own"
)
SUPER_RESOLUTION = {
    "scratch": ALONE,
    "kd": {"method.distill": _around(1.0), "method.hr": _around(1.0)},
    "mtkd": {"method.distill": _around(1.0), "method.hr": _around(0.1), "method.low": _around(1.0)},
    "pisr": {"method.vid": ("loguniform", 1e-7, 1e-2), "method.distill": _around(1.0)},
    "dukd": {
        "method.distill": _around(1.0),
        "method.hr": _around(5.0),
        "method.consistency": _around(1.0),
    },
}
RECOGNITION = {
    "scratch": ALONE,
    "kd": {"method.soft": _around(1.0)},
    "rkd": {
        "method.soft": _around(0.8),
        "method.contrast": _around(1.0),
        "method.distances": _around(2.0),
        "method.angles": _around(1.0),
        "method.adversarial": _around(0.1),
        "method.feature": _around(1.0),
        "method.pairwise": _around(1.0),
        "method.mmd": _around(1.0),
    },
    "horkd": {
        "method.soft": _around(0.8),
        "method.contrast": _around(1.0),
        "method.order1": _around(0.3),
        "method.order2": _around(2.0),
        "method.order3": _around(1.0),
        "method.group": _around(3.0),
        "method.gamma": _around(0.5),
    },
}
RECOGNITION_TASKS = ("classification", "verification", "retrieval", "segmentation")
_SPACES = {("sr", method): space for method, space in SUPER_RESOLUTION.items()} | {
    (task, method): space for task in RECOGNITION_TASKS for method, space in RECOGNITION.items()
}
BY = {("task", "method.name"): _SPACES}
NOT_FROM_ZERO = tuple(
    sorted({path for space in _SPACES.values() if isinstance(space, dict) for path in space})
)
