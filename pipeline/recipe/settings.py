"""What every recipe's settings are made of: sections, names, and how a network is trained."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from pipeline.recipe.schedule import Fraction

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]
Gpus = Annotated[float, Field(ge=0)] | Literal["auto"]
Unquoted = BeforeValidator(lambda value: "off" if value is False else value)
"""For settings that may be `off`, which YAML reads as false."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Later(Section):
    """Settings that came later: who leaves them as they are has the fingerprint that it had."""

    later: ClassVar[tuple[str, ...]] = ()
    """Keys that are left out of dumps at their defaults."""

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            k: v for k, v in dumped.items() if k not in self.later or getattr(self, k) != fields[k].default
        }


class Budget(Section):
    """One training: length, optimiser, schedule and what is watched."""

    steps: Positive = 10_000
    """Optimiser steps."""
    batch: Positive = 16
    """Global batch: samples per step over all workers."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Floor of the cosine schedule."""
    milestones: tuple[Fraction, ...] = (0.5, 0.8, 0.9, 0.95)
    """Progress values at which `multistep` multiplies the rate by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor of `multistep`."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    optimiser: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Optimiser; `sgd` has Nesterov's momentum, the first of `betas`; `muon` moves layers between features in all
    directions equally far (Jordan et al., 2024) and everything else by Adam (docs/results.md says what it brings)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the exponential moving average that is evaluated and exported; 0 turns it off."""
    amp: Annotated[Literal["off", "bf16", "fp16"], Unquoted] = "off"
    """Autocast; losses stay in fp32, and with `bf16` the last tenth of the steps. On a CPU `bf16` holds where it has
    AMX or AVX512_BF16 (docs/scale.md says what it brings), `fp16` never: said, then, and trained in fp32."""
    compile: bool = False
    """torch.compile on the trained networks."""
    log_every: Positive = 100
    """Steps between logged loss values (their mean over the interval)."""
    evaluate_every: Positive = 1000
    """Steps between evaluations; also the checkpoint interval and one report to Ray."""
    keep: Positive = 2
    """Complete checkpoints kept."""


class Train(Budget, Later):
    """The training of a super-resolution network."""

    later: ClassVar[tuple[str, ...]] = ("sampling",)

    patch: Positive = 32
    """Side of a training patch in LR pixels."""
    sampling: Literal["uniform", "gain"] = "uniform"
    """How often tiles are drawn: all alike; or, with `gain`, up to six times as often where the target (HR, where a
    method has no other) is far from bicubic enlargement. Importance weights on the gradients keep the expected gradient
    that of `uniform` (Zhao and Zhang, ICML 2015); logged losses are those of the drawn samples, unweighted. A loss over
    the whole batch (`relational`) is weighed by sample, which is not exact. Not for `pisr`, which compares features.
    """
