"""Around what the first sweep of `rkd` found (docs/recognition_terms.md): the contrast's weight rises above others."""

SPACE = {
    "method.contrast": ("loguniform", 1.0, 30.0),
    "method.soft": ("loguniform", 0.1, 10.0),
    "method.temperature": ("choice", 1.0, 2.0, 4.0),
    "method.distances": ("loguniform", 0.3, 30.0),
    "method.angles": ("loguniform", 0.3, 30.0),
}
