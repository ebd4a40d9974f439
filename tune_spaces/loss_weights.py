"""The weights of each method's loss terms, on a logarithmic scale around the published values.

Only the ratio of two weights and the learning rate matter much to Adam, so where a method has two terms both move and
the search sees the ratio; ranges span a factor of ten to each side of the paper's value.
"""

BY = {
    "method.name": {
        "scratch": {"method.hr": ("loguniform", 0.1, 10.0)},
        "kd": {"method.distill": ("loguniform", 0.1, 10.0), "method.hr": ("loguniform", 0.1, 10.0)},
        "mtkd": {"method.distill": ("loguniform", 0.1, 10.0), "method.hr": ("loguniform", 0.01, 1.0)},
        "pisr": {"method.distill": ("loguniform", 1e-6, 1e-4), "method.hr": ("loguniform", 0.1, 10.0)},
        "rkd": {"method.distance": ("loguniform", 1.0, 100.0), "method.angle": ("loguniform", 2.0, 200.0)},
        "horkd": {"method.distance": ("loguniform", 1.0, 100.0), "method.angle": ("loguniform", 2.0, 200.0)},
    }
}
