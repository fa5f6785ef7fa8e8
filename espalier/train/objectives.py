"""What training minimises: the distance to labels, and to another model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import Node
from espalier.train.module import GraphModule
from espalier.train.weights import NO_LEARNING

Distance = Literal["auto", "kl", "mse"]


def is_distribution(output: torch.Tensor) -> bool:
    """Whether rows along the last axis are probabilities: at least 0, sum 1."""
    if output.ndim < 2 or output.shape[-1] < 2 or not output.dtype.is_floating_point:
        return False
    wide = output.detach().float()
    return bool((wide >= 0).all()) and bool(((wide.sum(-1) - 1).abs() < 1e-3).all())


def _log_probabilities(output: torch.Tensor, probabilities: bool, temperature: float) -> torch.Tensor:
    wide = output.float() if output.itemsize < 4 else output
    if probabilities:  # the logarithm is a logit up to a constant, which softmax ignores
        wide = torch.log(wide.clamp_min(1e-12))
    return F.log_softmax(wide / temperature, -1)


def divergence(
    found: torch.Tensor, wanted: torch.Tensor, temperature: float, probabilities: bool = False
) -> torch.Tensor:
    """Kullback-Leibler divergence of softmax at a temperature, times its square (Hinton et al. 2015): mean of rows."""
    a = _log_probabilities(wanted, probabilities, temperature).reshape(-1, wanted.shape[-1])
    b = _log_probabilities(found, probabilities, temperature).reshape(-1, wanted.shape[-1])
    return F.kl_div(b, a, reduction="batchmean", log_target=True) * temperature**2


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Σ(y − y′)² / Σy²."""
    wide = wanted.float() if wanted.itemsize < 4 else wanted
    return torch.sum((found - wide) ** 2) / torch.sum(wide**2).clamp_min(1e-12)


def supervised(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of classes (integers, or one-hot), or the mean squared error of numbers.

    Raises InputError E206 for labels that don't fit.
    """
    if labels.dtype.is_floating_point and labels.shape == output.shape and output.ndim > 1 and output.shape[-1] != 1:
        if not _are_probabilities(labels):
            return F.mse_loss(output, labels.to(output.dtype))
        return cross_entropy(output, labels).mean()
    if labels.dtype.is_floating_point:
        if labels.numel() != output.numel():
            raise _misfit(labels, output)
        return F.mse_loss(output.reshape(-1), labels.reshape(-1).to(output.dtype))
    return cross_entropy(output, labels, sigmoid=True).mean()


def as_labels(labels: NDArray[Any]) -> torch.Tensor:
    """Labels for `cross_entropy`. Raises InputError E206 for what are no numbers."""
    if labels.dtype.kind not in "biuf":
        raise InputError("E206", f"labels of {labels.dtype} are no numbers of classes")
    return torch.from_numpy(labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64))


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor, *, sigmoid: bool = False) -> torch.Tensor:
    """Cross-entropy per sample [n] of scores [n, …, classes], or of one score each (its sign decides).

    Scores that are probabilities already (none negative, summing to 1) are taken as such.

    Args:
        labels: numbers of classes [n, …], or their probabilities (such as one-hot) [n, …, classes].
        sigmoid: whether single scores that are all from 0 to 1 are taken as probabilities, too.

    Raises:
        InputError: E206 for labels that don't fit.
    """
    classes = scores.shape[-1] if scores.ndim > 1 else 1
    if classes > 1 and labels.shape == scores.shape:
        losses = _divergence_from(scores, labels)
    else:
        wanted = labels.reshape(-1).long()
        if wanted.numel() * max(classes, 1) != scores.numel():
            raise _misfit(labels, scores)
        largest = max(classes, 2) - 1
        if wanted.numel() and not (int(wanted.min()) >= 0 and int(wanted.max()) <= largest):
            found = f"{int(wanted.min())} to {int(wanted.max())}"
            raise InputError("E206", f"labels from {found} for {largest + 1} classes")
        if not bool((wanted == labels.reshape(-1)).all()):
            raise InputError("E206", "labels that are no numbers of classes: they are not whole")
        if classes > 1:
            logs = _log_probabilities(scores, is_distribution(scores), 1.0).reshape(-1, classes)
            losses = F.nll_loss(logs, wanted, reduction="none")
        else:
            flat = scores.reshape(-1)
            chances = sigmoid and bool(((flat >= 0) & (flat <= 1)).all())
            measure = F.binary_cross_entropy if chances else F.binary_cross_entropy_with_logits
            losses = measure(flat, wanted.to(flat.dtype), reduction="none")
    samples = len(scores) if scores.ndim else 1
    return losses.reshape(samples, -1).mean(1) if samples else losses.reshape(-1)


def _divergence_from(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """−Σ p·log q of each row; what p is 0 for may have a score of −∞."""
    if not _are_probabilities(labels):
        raise InputError("E206", f"labels of shape {tuple(labels.shape)} that are neither one-hot nor probabilities")
    logs = _log_probabilities(scores, is_distribution(scores), 1.0)
    return -torch.where(labels > 0, labels * logs, 0).sum(-1)


def _are_probabilities(labels: torch.Tensor) -> bool:
    wide = labels.double()
    return bool(((wide >= 0) & (wide <= 1)).all()) and bool(((wide.sum(-1) - 1).abs() < 1e-3).all())


def _misfit(labels: torch.Tensor, output: torch.Tensor) -> InputError:
    return InputError("E206", f"labels of shape {tuple(labels.shape)} for outputs of shape {tuple(output.shape)}")


@dataclass
class Imitation:
    """Labels, the outputs of a teacher, and its inner values: a weighted sum of the distances to each.

    Attributes:
        teacher: what to imitate; None: labels only.
        share: of the teacher in the loss; the labels have the rest.
        distance: to the teacher's outputs. "kl": of softmax over the last axis; "mse": squared, relative to the
            output's own square; "auto": both for outputs of rank 2 with several columns, else "mse".
        temperature: of "kl".
        inner: weight of the relative squared distance of inner values that have the same name and shape in both.
    """

    teacher: GraphModule | None
    share: float
    labelled: bool
    distance: Distance = "auto"
    temperature: float = 4.0
    inner: float = 0.0
    _probabilities: dict[int, bool] = field(default_factory=dict)

    def __call__(
        self, module: GraphModule, inputs: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor:
        taught: dict[str, torch.Tensor] = {}
        held: dict[str, torch.Tensor] = {}
        outputs = module(*inputs, observe=_recorder(held) if self.inner else None)
        total: torch.Tensor = outputs[0].new_zeros(())
        if self.labelled and self.share < 1:
            if labels is None:
                raise InputError("E206", "some of the data have labels, and some have none")
            total = total + (1 - self.share) * supervised(outputs[0], labels)
        if self.teacher is not None and self.share > 0:
            with torch.no_grad():
                wanted = self.teacher(*inputs, observe=_recorder(taught) if self.inner else None)
            total = total + self.share * self._distances(outputs, wanted)
            total = total + self.inner * _inner_distance(held, taught) if self.inner else total
        return total

    def _distances(self, outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        terms = []
        for position, (a, b) in enumerate(zip(outputs, wanted, strict=True)):
            if not a.requires_grad or not b.dtype.is_floating_point:
                continue
            if a.shape != b.shape:
                message = f"output {position} has shape {tuple(a.shape)}, the original's {tuple(b.shape)}"
                raise InputError("E226", message, hint="Recover a model from the one that it was made of.")
            rows = b.ndim == 2 and b.shape[-1] > 1
            if self.distance == "kl" or (self.distance == "auto" and rows):
                chances = self._probabilities.setdefault(position, is_distribution(b))
                terms.append(divergence(a, b, self.temperature, chances))
            if self.distance != "kl":
                terms.append(relative_error(a, b))
        if not terms:
            message = "no output is a float that depends on a weight that learns, so that there is no gradient"
            raise InputError("E226", message, hint=NO_LEARNING)
        return torch.stack(terms).sum()


def _recorder(store: dict[str, torch.Tensor]) -> Any:
    def observe(node: Node, results: Sequence[Any]) -> None:
        for value, result in zip(node.results, results, strict=False):
            if isinstance(result, torch.Tensor) and result.dtype.is_floating_point and value.name:
                store[value.name] = result

    return observe


def _inner_distance(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The mean over values that both models have."""
    common = [
        name
        for name, tensor in found.items()
        if name in wanted and wanted[name].shape == tensor.shape and tensor.requires_grad
    ]
    if not common:
        raise InputError("E226", "the models have no inner values of one name and shape", hint="Leave `inner` at 0.")
    return torch.stack([relative_error(found[name], wanted[name]) for name in common]).mean()
