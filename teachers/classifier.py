"""Classifiers and embedders made elsewhere as teachers: what they want of a picture, their classes, their embedding.

A teacher gets pictures as everything here does, (B, 3, H, W) RGB in [0, 1] at HR; size, mean, deviation and value range
of its own are made at its boundary. Its embedding is what its last layer gets, or what it calls so itself.
Probabilities in the place of logits become their logarithms. An embedder has no classes, or others than the data's: its
embedding is its output, or what it calls so, and it gives nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import FacultyError, InputError, reason
from teachers.networks import cifar_resnet

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
LEAST = 1e-7
"""Probability below which nothing is told apart."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """What the network itself is given."""

    size: tuple[int, int] | None = None
    """(height, width) that pictures are resized to, by bicubic interpolation with antialiasing; None as they come."""
    mean: tuple[float, ...] = PLAIN[0]
    std: tuple[float, ...] = PLAIN[1]
    value_range: float = 1.0
    """White, before mean and deviation."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] as the network wants it."""
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x * self.value_range - mean) / std


@dataclass(frozen=True, slots=True)
class Public:
    """A classifier by value."""

    kind: str
    """`cifar_resnet`, `timm`, `onnx` or `factory`."""
    facts: dict[str, Any]
    """timm: `name`, `classes`. onnx: `logits`, `embedding` (names of outputs). factory: `place`, `options`. `embeds` of
    an embedder."""
    boundary: Boundary
    columns: tuple[int, ...] = ()
    """Which of its answers are the data's classes, in their order; empty for all."""

    @property
    def embeds(self) -> bool:
        """Whether its embedding alone is asked for."""
        return bool(self.facts.get("embeds"))


class Classifier(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] -> {"logits": (B, K), "embedding": (B, D)}; of an embedder without logits."""

    dropped = 0

    def __init__(self, network: nn.Module, public: Public, where: str, size: tuple[int, int]) -> None:
        """Raises InputError naming `where` for a network that gives no logits, or no embedding that can be found."""
        super().__init__()
        self.network, self.public, self.where = network.eval(), public, where
        self.layer: str | None = None
        """The module whose input is the embedding; None where the network gives one itself."""
        self.embeds = public.embeds
        """Whether it gives no logits."""
        self._seen: list[Tensor] = []
        self._look(size)
        with torch.no_grad():
            logits, embedding = self._all(
                torch.rand((4, 3, *size), generator=torch.Generator().manual_seed(0))
            )
        if embedding.ndim != 2:
            raise InputError(where, "an embedding (N, width)", f"shape {tuple(embedding.shape)}")
        self.answers, self.width = 0 if logits is None else logits.shape[1], embedding.shape[1]
        self.certain = logits is not None and bool(
            (logits >= 0).all() and (logits.sum(dim=1) - 1).abs().max() < 1e-3
        )
        """Whether it gives probabilities."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits, embedding = self._all(x)
        if logits is None:
            return {"embedding": embedding}
        if self.certain:
            logits = logits.clamp_min(LEAST).log()
        if self.public.columns:
            logits = logits[:, list(self.public.columns)]
        return {"logits": logits, "embedding": embedding}

    def _all(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """(what it answers for all its own classes, or None of an embedder; embedding)."""
        self._seen.clear()
        out = self.network(self.public.boundary(x))
        if self.embeds:
            whole = out["embedding"] if isinstance(out, Mapping) else out
            return None, whole if self.layer is None else self._seen.pop()
        return (out["logits"], out["embedding"]) if isinstance(out, Mapping) else (out, self._seen.pop())

    @torch.no_grad()
    def _look(self, size: tuple[int, int]) -> None:
        """Find out where the embedding is."""
        x = torch.linspace(0, 1, 2 * 3 * size[0] * size[1]).view(2, 3, *size)
        inputs: dict[str, tuple[Tensor, Tensor]] = {}
        modules = {
            name: m for name, m in self.network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))
        }
        hooks = [
            m.register_forward_hook(
                lambda _, given, out, name=name: inputs.__setitem__(name, (given[0], out))
            )
            for name, m in modules.items()
        ]
        try:
            out = self.network(self.public.boundary(x))
        except Exception as error:  # whatever somebody's network raises
            raise InputError(
                self.where, f"a network of pictures (N, 3, {size[0]}, {size[1]})", reason(error)
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        self.embeds = self.embeds or (isinstance(out, Mapping) and out.keys() == {"embedding"})
        if isinstance(out, Mapping):
            missing = ({"embedding"} if self.embeds else {"logits", "embedding"}) - out.keys()
            if missing:
                raise InputError(self.where, "logits and embedding", f"no {' and '.join(sorted(missing))}")
            return
        if self.embeds and isinstance(out, Tensor) and self.public.kind != "cifar_resnet":
            return  # an embedder's answer is its embedding
        if not isinstance(out, Tensor) or out.ndim != 2:
            found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(self.where, "logits (N, classes), or a table of logits and embedding", found)
        for name, (_, made) in reversed(inputs.items()):
            answers = made.flatten(1)
            same = answers.shape == out.shape and (
                torch.equal(answers, out) or torch.allclose(answers.softmax(dim=1), out, atol=1e-6)
            )
            if same:
                self.layer = name
                modules[name].register_forward_pre_hook(lambda _, args: self._seen.append(args[0].flatten(1)))
                return
        raise InputError(
            self.where,
            "a linear layer whose output are the logits, before which the embedding is taken",
            "none",
            "Let a factory return {'logits': ..., 'embedding': ...}.",
        )


def open_classifier(public: Public, data: bytes, where: str, size: tuple[int, int]) -> Classifier:
    """The network; `data` is its file's (safetensors of a state dict, or ONNX), `size` the pictures' (height, width).

    Raises InputError naming `where`.
    """
    if public.kind == "onnx":
        from teachers.onnx_classifier import OnnxClassifier

        network: nn.Module = OnnxClassifier(data, public.facts, where)
    elif public.kind == "factory":
        from teachers.factory import call

        network = call(public.facts["place"], public.facts["options"], where)
    else:
        from safetensors.torch import load

        state = load(data)
        try:
            if public.kind == "timm":
                network = timm_classifier(public.facts["name"], public.facts.get("classes"))
                network.load_state_dict(state)
            else:
                network = cifar_resnet.build(state)
        except RuntimeError as error:
            raise InputError(
                where, f"the weights of {public.facts.get('name', public.kind)}", reason(error)
            ) from None
    return Classifier(network, public, where, size)


def timm_classifier(name: str, classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """A whole classifier of timm. Raises InputError for a name that it has not, FacultyError for weights afar."""
    from teachers.timm_import import import_timm

    timm: Any = import_timm()
    options = {} if classes is None else {"num_classes": classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"timm {name}", "a classifier of timm", reason(error)) from None
    except Exception as error:  # the hub's client has a dozen kinds
        if not pretrained:
            raise
        raise FacultyError(
            f"timm {name}: its pretrained weights cannot be had ({reason(error)[:200]}). Fetch them where the hub can "
            "be reached and copy its cache (HF_HOME), or name a local file as `checkpoint`."
        ) from error


def timm_boundary(network: nn.Module) -> Boundary:
    """What timm says that one of its classifiers wants."""
    facts: Any = network.default_cfg
    height, width = facts["input_size"][1:]
    return Boundary((height, width), tuple(facts["mean"]), tuple(facts["std"]))


def columns_of(where: str, answers: int, own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Which of a network's `answers` are the data's classes `wanted`, by name where its own are known.

    Raises InputError with both lists where they do not go together.
    """
    if own and len(own) != answers:
        raise InputError(
            f"{where}: classes", f"{answers} names, one for each answer of the network", f"{len(own)}"
        )
    if own:
        if missing := [name for name in wanted if name not in own]:
            raise InputError(
                f"{where}: classes",
                f"the data's classes among the network's: {', '.join(wanted)}",
                f"no {', '.join(missing)} in {', '.join(own)}",
                "Give the network's own names in its order (`classes`), spelled as the data's are.",
            )
        found = tuple(list(own).index(name) for name in wanted)
        return () if found == tuple(range(answers)) else found
    if answers != len(wanted):
        raise InputError(
            where,
            f"{len(wanted)} answers, for the data's classes {', '.join(wanted)}",
            f"{answers} without names",
            "Give the network's own names in its order (`classes`).",
        )
    return ()
