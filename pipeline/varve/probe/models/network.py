"""Models trained by gradient descent: the MLP, and every learned mix of layers.

Knows nothing of features or files. The validation rows choose the epoch to stop at and the weight decay. Invariant: the
same seed on the same machine gives the same network.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from varve.probe.data.feature_matrix import moments
from varve.probe.models.head import Head, Shape
from varve.probe.models.linear import FittedHead, TrainingData, log_loss

HIDDEN = (256,)
_DECAYS, _LINEAR_DECAYS = (0.01, 1.0), (0.1, 1.0, 10.0)
_DROPOUT = 0.2
_RATE = 1e-3
_MIX_RATE = 5e-3  # of the layers' weights, which are few numbers
_MAX_EPOCHS = 100
_PATIENCE = 6
_SMALL_BATCH, _LARGE_BATCH, _MANY_ROWS = 128, 2048, 100_000
# Multiplications per batch below which threads wait for each other longer than they compute: on a busy machine several
# threads take ten times as long as one.
_ONE_THREAD = 4_000_000


def fit_network(data: TrainingData, shape: Shape, seed: int) -> FittedHead:
    """The network with the weight decay and epoch that have the lowest loss on the validation rows."""
    batch_rows = _LARGE_BATCH if data.train.num_rows > _MANY_ROWS else _SMALL_BATCH
    decays = _DECAYS if shape.hidden else _LINEAR_DECAYS
    units = max(shape.hidden, default=shape.outputs)
    threads = torch.get_num_threads()
    if batch_rows * data.train.width * units < _ONE_THREAD:
        torch.set_num_threads(1)
    try:
        fits = [_train(data, shape, seed, decay, batch_rows) for decay in decays]
    finally:
        torch.set_num_threads(threads)
    return min(fits, key=lambda fitted: fitted.validation_loss)


def _train(data: TrainingData, shape: Shape, seed: int, decay: float, batch_rows: int) -> FittedHead:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Numbers are predicted in units of their standard deviation from their mean.
    unit = (0.0, 1.0) if shape.outputs > 1 else (float(data.target.mean()), float(data.target.std()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Head(shape, _DROPOUT if shape.hidden else 0.0)
        head.mean, head.scale = map(torch.from_numpy, moments(data.train, shape.vector_width))
        head.to(device)
        optimizer = _optimizer(head, decay)
        best, best_state, best_epoch = np.inf, head.state_dict(), 0
        for epoch in range(_MAX_EPOCHS):
            head.train()
            for numbers, inputs in data.train.batches((seed, epoch), batch_rows):
                target = torch.from_numpy(data.target[numbers]).to(device)
                loss = _loss(head(torch.from_numpy(inputs).to(device)), target, data.class_weights, unit)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
            validation_loss = _validation_loss(head, data, unit)
            if validation_loss < best:
                best, best_state, best_epoch = validation_loss, copy.deepcopy(head.state_dict()), epoch
            elif epoch - best_epoch >= _PATIENCE:
                break
    head.load_state_dict(best_state)
    mean, scale = unit
    last = head.body[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():  # back to the unit of the label
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(mean)
    return FittedHead(head.cpu().eval(), {"weight_decay": decay, "epochs": best_epoch + 1}, best)


def _optimizer(head: Head, decay: float) -> torch.optim.Optimizer:
    mix = [parameter for name, parameter in head.named_parameters() if name == "mix"]
    rest = [parameter for name, parameter in head.named_parameters() if name != "mix"]
    groups = [{"params": rest, "weight_decay": decay}, {"params": mix, "lr": _MIX_RATE, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=_RATE)


def _loss(
    outputs: torch.Tensor, target: torch.Tensor, class_weights: np.ndarray | None, unit: tuple[float, float]
) -> torch.Tensor:
    if outputs.shape[1] > 1:
        weights = None if class_weights is None else torch.from_numpy(class_weights).to(outputs.device)
        return F.cross_entropy(outputs, target.long(), weight=weights)
    mean, scale = unit
    return F.mse_loss(outputs[:, 0], (target - mean) / scale)


def _validation_loss(head: Head, data: TrainingData, unit: tuple[float, float]) -> float:
    scores = head.scores_of(data.validation)
    if head.shape.outputs > 1:
        return log_loss(scores, data.validation_target, data.class_weights)
    mean, scale = unit
    return float(np.mean((scores[:, 0] * scale + mean - data.validation_target) ** 2))
