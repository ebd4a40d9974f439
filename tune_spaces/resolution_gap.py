"""How much less the student sees than its teachers.

Recognition: the resolution gap, the factor between the side of the teachers' pictures and of the student's; the
teachers' cached outputs serve every gap. Super-resolution: the scale, as far as the recipe's teachers exist for it.
PSNR falls with the scale whatever the student does, so over scales only `--objective pareto` compares what it should.
"""

BY = {
    "task": {
        "recognition": {"gap": ("choice", 2, 4, 8)},
        "sr": {"scale": ("choice", 2, 3, 4)},
    }
}
WHERE_IT_FITS = ("scale", "gap")
