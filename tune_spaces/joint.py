"""Loss weights and resolution gap together: how much a teacher's word should weigh depends on how much more it sees."""

from typing import Any

from tune_spaces import loss_weights, resolution_gap

BY: dict[Any, Any] = {**loss_weights.BY, **resolution_gap.BY}
WHERE_IT_FITS = resolution_gap.WHERE_IT_FITS
NOT_FROM_ZERO = loss_weights.NOT_FROM_ZERO
