"""How much less the student sees than its teachers.

Recognition: the resolution gap, the factor between the side of the teacher's pictures and of the student's, as far as
enough pixels are left; the teacher's cached outputs serve every gap. Super-resolution: the scale, as far as the
recipe's teachers exist for it. Accuracy falls with the gap and PSNR with the scale whatever the student does, so only
`--objective pareto` compares what it should.
"""

from tune_spaces.loss_weights import RECOGNITION_TASKS

BY = {
    "task": {
        "sr": {"scale": ("choice", 2, 3, 4)},
        **{task: {"gap": ("choice", 2, 4, 8)} for task in RECOGNITION_TASKS},
    }
}
WHERE_IT_FITS = ("scale", "gap")
