"""Networks trained by gradient descent: the MLP, and every learned mix of layers.

Knows nothing of features or files. Minibatches are drawn from a matrix wherever it lies; the validation rows say when
to stop and which weight decay is best. Invariant: the same seed on the same machine gives the same network.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from varve.probe.models.head import Head, Shape
from varve.probe.models.linear import Data, Fitted, log_loss, set_moments

HIDDEN = (256,)
DECAYS, LINEAR_DECAYS = (0.01, 1.0), (0.1, 1.0, 10.0)
_DROPOUT = 0.2
_RATE = 1e-3
_MIX_RATE = 5e-3  # of the layers' weights: a handful of numbers
_MAX_EPOCHS = 100
_PATIENCE = 6
_SMALL_BATCH, _LARGE_BATCH, _MANY_ROWS = 128, 2048, 100_000


def fit_network(data: Data, shape: Shape, seed: int) -> Fitted:
    """The network whose weight decay and epoch the validation rows like best."""
    fits = [_train(data, shape, seed, decay) for decay in (DECAYS if shape.hidden else LINEAR_DECAYS)]
    return min(fits, key=lambda fitted: fitted.validation_loss)


def _train(data: Data, shape: Shape, seed: int, decay: float) -> Fitted:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Head(shape, _DROPOUT if shape.hidden else 0.0).to(device)
        set_moments(head, data.train)
        middle, spread = (0.0, 1.0) if shape.outputs > 1 else (float(data.target.mean()), float(data.target.std()))
        optimizer = _optimizer(head, decay)
        best, best_state, best_epoch = np.inf, head.state_dict(), 0
        for epoch in range(_MAX_EPOCHS):
            _epoch(head, optimizer, data, (seed, epoch), (middle, spread))
            loss = _validation_loss(head, data, (middle, spread))
            if loss < best:
                best, best_state, best_epoch = loss, copy.deepcopy(head.state_dict()), epoch
            elif epoch - best_epoch >= _PATIENCE:
                break
    head.load_state_dict(best_state)
    with torch.no_grad():  # back to the label's own unit
        head.last.weight.mul_(spread)
        head.last.bias.mul_(spread).add_(middle)
    return Fitted(head.cpu().eval(), {"weight_decay": decay, "epochs": best_epoch + 1}, best)


def _optimizer(head: Head, decay: float) -> torch.optim.Optimizer:
    mix = [parameter for name, parameter in head.named_parameters() if name == "mix"]
    rest = [parameter for name, parameter in head.named_parameters() if name != "mix"]
    groups = [{"params": rest, "weight_decay": decay}, {"params": mix, "lr": _MIX_RATE, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=_RATE)


def _epoch(
    head: Head, optimizer: torch.optim.Optimizer, data: Data, seed: tuple[int, int], unit: tuple[float, float]
) -> None:
    head.train()
    device = head.mean.device
    weights = None if data.class_weights is None else torch.from_numpy(data.class_weights).to(device)
    batch_rows = _LARGE_BATCH if data.train.num_rows > _MANY_ROWS else _SMALL_BATCH
    for numbers, inputs in data.train.batches(seed, batch_rows):
        found = head(torch.from_numpy(inputs).to(device))
        target = torch.from_numpy(data.target[numbers]).to(device)
        loss = _loss(found, target, weights, unit)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()


def _loss(
    found: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None, unit: tuple[float, float]
) -> torch.Tensor:
    if found.shape[1] > 1:
        return F.cross_entropy(found, target.long(), weight=weights)
    return F.mse_loss(found[:, 0], (target - unit[0]) / unit[1])


def _validation_loss(head: Head, data: Data, unit: tuple[float, float]) -> float:
    scores = head.scores_of(data.validation)
    if head.shape.outputs > 1:
        return log_loss(scores, data.validation_target, data.class_weights)
    return float(np.mean((scores[:, 0] * unit[1] + unit[0] - data.validation_target) ** 2))
