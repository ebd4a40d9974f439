"""The settings of the super-resolution methods, each documented beside it; `pipeline/methods` carries them out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, model_validator

from pipeline.recipe.schedule import Fraction, Piecewise, Ramp, Weight, times, weight_at
from pipeline.recipe.settings import Later, Positive, Section, Train

Target = Literal["none", "teacher", "fused"]
"""What a method reads from the cache beside LR and HR."""


class Pixelwise(Later):
    later: ClassVar[tuple[str, ...]] = ("assistant", "pixel", "gradient")

    pixel: Literal["l1", "charbonnier"] = "l1"
    """Loss on pixels: `l1`, or `charbonnier`, sqrt(error^2 + 0.001^2), which is smooth at zero."""


class Scratch(Pixelwise):
    """The student alone: L1 against HR. The baseline of every comparison."""

    target: ClassVar[Target] = "none"

    name: Literal["scratch"]
    """Always `scratch`."""
    hr: Weight = 1.0
    """Weight of L1 against HR."""


class Assistant(Section):
    """A network between the teachers and the student: it learns from them by the same method, and the student learns
    from its outputs instead of theirs (Mirzadeh et al., AAAI 2020)."""

    name: str = "edsr"
    """A name from `faculty students`."""
    options: dict[str, Any] = {}
    """Hyper-parameters of that network."""
    train: Train | None = None
    """Its training; default: the recipe's `train`."""


class Assisted(Pixelwise):
    assistant: Assistant | None = None
    """Ours: a network that learns from the teachers first, and whose outputs the student learns from."""


class KD(Assisted):
    """One teacher, L1 on outputs: L = distill * |S - T|_1 + hr * |S - HR|_1."""

    target: ClassVar[Target] = "teacher"

    name: Literal["kd"]
    """Always `kd`."""
    teacher: str = "best"
    """The teacher's name, or `best`: the highest PSNR on the held-out tiles. No teacher may be called `best` then."""
    distill: Weight = 1.0
    """Weight of L1 against the teacher."""
    hr: Weight = 1.0
    """Weight of L1 against HR."""
    gradient: Weight = 0.0
    """Ours: weight of L1 between the differences of neighbouring pixels of the student's picture and the teacher's."""


class MTKD(Assisted):
    """Several teachers through their fused target, wavelet distillation (Jiang et al., ECCV 2024, eq. 5-7)."""

    target: ClassVar[Target] = "fused"

    name: Literal["mtkd"]
    """Always `mtkd`."""
    distill: Weight = 1.0
    """Weight of the wavelet loss against the fused target."""
    hr: Weight = 0.1
    """Weight alpha of L1 against HR."""
    wavelet: str = "haar"
    """Any discrete wavelet of PyWavelets."""
    level: Positive = 1
    """Decomposition levels K; the paper's choice is 1."""
    mode: Literal["zero", "symmetric", "reflect", "periodic", "periodization"] = "zero"
    """Border rule of the transform."""
    relational: Weight = 0.0
    """Ours: weight of the relational loss between the details of the student's pictures and of the fused targets, over
    the whole batch."""
    low: Annotated[float, Field(ge=0)] | Ramp | Piecewise = 1.0
    """Ours: weight of the loss' low band, on top of `distill`. Published it is 1; at 0.33 all coefficients count alike,
    from which FSRCNN learns faster (docs/results.md). With a schedule that falls to 0 the run's end is about details
    alone."""
    dual_tree: bool = False
    """Ours: the shift-invariant dual-tree complex transform instead of `wavelet`."""
    handover: tuple[Fraction, Fraction] | None = None
    """Ours: [begin, until]. Between these progress values the distillation weight falls linearly to 0 and the
    HR weight rises to 1, so the last part of the run fits HR itself. Needs constant `distill` and `hr`."""

    @model_validator(mode="after")
    def _one_schedule(self) -> MTKD:
        if self.handover and not (isinstance(self.distill, float) and isinstance(self.hr, float)):
            raise ValueError(
                "handover needs constant weights `distill` and `hr`; give it or schedules, not both"
            )
        if not isinstance(self.low, float) and (self.handover or not isinstance(self.distill, float)):
            raise ValueError("a schedule of `low` needs a constant `distill` and no handover")
        if not isinstance(self.low, float) and min(weight_at(self.low, p / 100) for p in range(101)) < 0:
            raise ValueError("a schedule of `low` must not fall below 0")
        return self

    def weights(self) -> dict[str, Weight]:
        """The weight of each loss term, with the hand-over spelled out as two ramps; the low band is a term of its own
        where it has a schedule."""
        if not isinstance(self.low, float):
            assert isinstance(self.distill, float)
            low = times(self.low, self.distill)
            return {"distill": self.distill, "low": low, "hr": self.hr, "relational": self.relational}
        if self.handover is None or not isinstance(self.distill, float) or not isinstance(self.hr, float):
            return {"distill": self.distill, "hr": self.hr, "relational": self.relational}
        begin, until = self.handover
        return {
            "relational": self.relational,
            "distill": Ramp(kind="linear", start=self.distill, end=0.0, begin=begin, until=until),
            "hr": Ramp(kind="linear", start=self.hr, end=1.0, begin=begin, until=until),
        }


class PISR(Section):
    """Privileged information (Lee et al., ECCV 2020): a teacher that sees HR, its decoder as the student's start, and
    variational distillation (VID) of its features."""

    name: Literal["pisr"]
    """Always `pisr`."""
    teacher: Literal["privileged", "larger"] = "privileged"
    """`privileged`: an encoder that sees HR and a decoder of the student's architecture. `larger`, for ablations: a
    larger network of the student's kind that sees LR."""
    larger: dict[str, Any] = {}
    """Options of the `larger` teacher, over the student's own."""
    checkpoint: str | None = None
    """Weights of a teacher trained before (weights.safetensors of its training) instead of phase 1."""
    imitation: Annotated[float, Field(ge=0)] = 1e-4
    """Phase 1's weight lambda_T of L1 between the code and the bicubic LR; 0 for none."""
    pretrain: Train | None = None
    """Phase 1's training; default: the recipe's `train`."""
    init: bool = True
    """The student starts as the teacher's decoder."""
    vid: Weight = 1e-6
    """Weight lambda_S of VID; 0 leaves the teacher out of the step."""
    layer: str | None = None
    """Module whose output VID compares; default: the last features before enlarging (fsrcnn: `expanding`)."""
    distribution: Literal["laplace", "gaussian"] = "laplace"
    """VID's distribution."""
    scale_per: Literal["element", "channel"] = "element"
    """VID's scale: predicted for each element, or one learned number a channel."""
    relational: Weight = 0.0
    """Ours: weight of the relational loss between the mean features of `layer`, over the whole batch."""
    hr: Weight = 1.0
    """Weight of L1 against HR."""
    distill: Weight = 0.0
    """Ours: weight of MTKD's wavelet loss (low band at 1/3) against the fused target of the recipe's teachers. With
    `vid: 0`, `distill: 1` and `hr: 0.1` this is PISR's start followed by MTKD."""

    @model_validator(mode="after")
    def _possible(self) -> PISR:
        if self.teacher == "larger" and self.init:
            raise ValueError("a student cannot start as a larger teacher; set init: false")
        if self.teacher == "privileged" and self.larger:
            raise ValueError("`larger` belongs to teacher: larger")
        if not self.init and self.vid == 0:
            raise ValueError(
                "with init: false and vid: 0 nothing of the teacher is used; take method scratch"
            )
        return self

    @property
    def target(self) -> Target:
        return "none" if self.distill == 0 else "fused"


class DUKD(Assisted):
    """Data upcycling (Zhang et al., arXiv 2309.14162): teachers explain further views of the training tiles
    (`data.upcycle`), and the student is to see the same in a picture that is turned or recoloured."""

    name: Literal["dukd"]
    """Always `dukd`."""
    teacher: str = "fused"
    """Who explains: `fused`, all teachers as one; a teacher's name; or `best`, as for `kd`."""
    hr: Weight = 5.0
    """Weight of L1 against HR."""
    distill: Weight = 1.0
    """Weight of L1 against the teacher, on tiles and views."""
    consistency: Weight = 1.0
    """Weight of label consistency: L1 between the teacher's picture and A^-1 S(A x), which takes a second pass of the
    student; 0 for none."""
    chance: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Probability of each part of a sample's A: mirrored across, mirrored down, transposed, inverted in colour, and,
    ours, channels permuted."""

    @property
    def target(self) -> Target:
        return "fused" if self.teacher == "fused" else "teacher"


Method = Annotated[Union[Scratch, KD, MTKD, PISR, DUKD], Field(discriminator="name")]
METHODS: dict[str, type[Section]] = {
    "scratch": Scratch,
    "kd": KD,
    "mtkd": MTKD,
    "pisr": PISR,
    "dukd": DUKD,
}
