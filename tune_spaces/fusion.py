"""Which teachers, at least two of them, and how they become one target; sets and fusions that do not fit are left out.

The learned `aggregate` is left out because it trains a network for every set of teachers; a space of your own may name
it: ("choice", {"kind": "mean"}, {"kind": "aggregate", "train": {"steps": 2000}}).
"""

from itertools import combinations

FUSION = {"fusion": ("choice", {"kind": "mean"}, {"kind": "median"}, {"kind": "weighted"}, {"kind": "best"})}
WHERE_IT_FITS = ("fusion", "teachers")
BY = {
    "method.name": {
        "mtkd": FUSION,
        "dukd": FUSION,
        "pisr": FUSION,
        "kd": "fusion: left out, kd learns from one teacher",
        "scratch": "fusion: left out, scratch learns from no teacher",
    },
    "teachers": {
        count: {
            "teachers": (
                "choice",
                *(list(some) for size in range(2, count + 1) for some in combinations(range(count), size)),
            )
        }
        for count in range(3, 7)
    },
}
