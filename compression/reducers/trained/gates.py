"""Gates between the blocks of a front: which tokens go on is scored by layers that learn, at a rate that is an input.

A budget beta, the share of patch tokens that is to be left, comes with each forward pass, as a token of its own:

    t(beta) = (1 - beta) t0 + beta t1            joins the sequence before the first block, and leaves it after the last
    s_i     = (w LN(x_i) - mean) / deviation     the score of patch i among those of its sample, after a gated block
    m_i     = [s_i > tau(beta)]                  is it left? in training, its gradient is that of sigmoid(s_i - tau);
                                                 the best token of a sample always is
    x_i     = m_i x_i                            no later token attends to what is closed, and it does not travel

After Devoto et al., "Adaptive Semantic Token Selection for AI-native Goal-oriented Communications", 2024, arXiv
2405.02330, where a penalty (mean(m) - beta)^2 brings the threshold tau about. Here tau is the quantile itself that
leaves the share beta: in training that of the mini-batch, so that bytes are as many as the budget says from the first
step on; in evaluation, where a sample must not depend on those beside it, a running mean of these, kept for budgets
from 0 to 1 and read between two of them. So no term is added to the loss, and what scores learn by is the gradient at
the cut alone. With G gates, the g-th leaves beta^(g / G) of all tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from splitfed.compression.reducers.trained.layers import Gates
from splitfed.compression.reducers.values.topk import first_largest
from splitfed.seeds import Key

_KNOTS = 32  # thresholds are kept for budgets of 0, 1 / 32, ..., 1
_NEAR = 0.125  # what a mini-batch of one budget tells of others fades over this distance
_FAR = 0.001  # to this weight
_MOMENTUM = 0.1  # of the running means
_MOST = 1e4  # of a score
_LEAST = 1e-6  # variance of a sample's scores


class TokenGates(Gates):
    """Gates after the last `count` blocks of a front, for `width` features and so many `prefix` tokens. `budget` holds
    where none is given."""

    thresholds: Tensor
    seen: Tensor

    def __init__(self, width: int, prefix: int, count: int, budget: float, key: Key) -> None:
        super().__init__()
        self.prefix, self.count, self.budget = prefix, count, budget
        generator = key.generator()
        self.ends = nn.Parameter(torch.empty(2, width).normal_(std=0.02, generator=generator))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        linears = [skip_init(nn.Linear, width, 1, bias=False) for _ in range(count)]
        for linear in linears:
            nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
        self.scores = nn.ModuleList(linears)
        self.register_buffer("thresholds", torch.zeros(count, _KNOTS + 1))
        self.register_buffer("seen", torch.zeros(count, _KNOTS + 1))  # the weight of what each has been told so far

    def forward(self, tokens: Tensor, blocks: Sequence[nn.Module], budget: float | Tensor | None = None) -> Tensor:
        """Turn tokens `[B, n, d]` into activations at the cut; in training all samples have one budget, a number."""
        rates = torch.as_tensor(self.budget if budget is None else budget, dtype=torch.float32, device=tokens.device)
        rates, open_ = rates.expand(len(tokens)), None
        low, high = self.ends
        token = torch.lerp(low, high, rates.unsqueeze(1).to(low.dtype)).unsqueeze(1)
        x = torch.cat([tokens, token.to(tokens.dtype)], 1)
        before = len(blocks) - self.count
        for number, block in enumerate(blocks):
            x = block(x) if open_ is None else block(x, attn_mask=self._around(open_)[:, None, None])
            if number >= before:
                x, open_ = self._gate(number - before, x, open_, rates)
        return x[:, :-1]

    def _around(self, open_: Tensor) -> Tensor:
        """Return the marks of a whole sequence, with prefix and budget tokens, from those of its patches `[B, p]`."""
        return nn.functional.pad(nn.functional.pad(open_, (self.prefix, 0), value=True), (0, 1), value=True)

    def _gate(self, number: int, x: Tensor, open_: Tensor | None, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Close tokens of `x` `[B, n + 1, d]`, of whose patches those are still `open_`; return it and who is left."""
        patches = x[:, self.prefix : -1]
        scores = self._scores(number, patches, open_)
        found = scores.detach().nan_to_num(nan=_MOST).clamp(-_MOST, _MOST)  # what is absurd is told at the cut
        if open_ is not None:
            found = found.masked_fill(~open_, -torch.inf)
        best = torch.zeros_like(found, dtype=torch.bool).scatter_(1, found.argmax(1, keepdim=True), True)
        shares = rates ** ((number + 1) / self.count)
        if self.training:
            left, threshold = self._fit(number, found.masked_fill(best, 2 * _MOST), float(shares[0]))
        else:
            threshold = self._threshold(number, shares).unsqueeze(1)
            left = best | (found > torch.where(shares.unsqueeze(1) < 1, threshold, -torch.inf))
        soft = torch.sigmoid(scores - threshold)
        factor = (1 + soft - soft.detach()).to(x.dtype)
        patches = torch.where(left.unsqueeze(-1), patches * factor.unsqueeze(-1), 0.0)
        return torch.cat([x[:, : self.prefix], patches, x[:, -1:]], 1), left

    def _scores(self, number: int, patches: Tensor, open_: Tensor | None) -> Tensor:
        """Return the scores of patches `[B, p, d]`, float32 `[B, p]`: of those of a sample that are still open, the
        mean is 0 and the variance 1."""
        raw = self.scores[number](self.norms[number](patches)).squeeze(-1).float()
        here = torch.ones_like(raw) if open_ is None else open_.float()
        count = here.sum(1, keepdim=True)
        raw = raw - (raw * here).sum(1, keepdim=True) / count
        return raw * ((raw.square() * here).sum(1, keepdim=True) / count + _LEAST).rsqrt()

    @torch.no_grad()
    def _fit(self, number: int, scores: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return which of a mini-batch's scores `[B, p]` are left, `share` of them all but the best of each sample at
        least, and their threshold; and go on with the running means of this gate."""
        count = max(len(scores), round(share * scores.numel()))
        left = torch.zeros_like(scores, dtype=torch.bool)
        left.view(-1)[first_largest(scores.reshape(1, -1), count)[0]] = True
        left &= scores > -torch.inf  # what an earlier gate has closed stays so
        order = scores.flatten().sort(descending=True).values
        alive = order[order > -torch.inf].clamp(max=_MOST)
        alive = alive.clamp(max=float(alive[min(len(scores), len(alive) - 1)]))  # the next to those that stay anyway
        knots = torch.arange(_KNOTS + 1, device=scores.device) / _KNOTS
        ranks = (knots * scores.numel()).round().long()
        told = _between(alive, ranks)
        weights = (1 - (knots - share).abs() / _NEAR).clamp(min=_FAR)
        seen, kept = self.seen[number].clamp(min=0), self.thresholds[number]
        pace = torch.maximum(_MOMENTUM * weights, weights / (weights + seen).clamp(min=1e-12))
        self.thresholds[number] = kept + pace * (told - kept)
        self.seen[number] = seen + weights
        return left, _between(alive, torch.tensor(count, device=scores.device))

    def _threshold(self, number: int, shares: Tensor) -> Tensor:
        """Return the running mean of the thresholds that leave these shares `[B]`; the larger a share, the lower."""
        kept = self.thresholds[number].flip(0).cummax(0).values.flip(0)
        at = shares.clamp(0, 1) * _KNOTS
        below = at.floor().long().clamp(max=_KNOTS - 1)
        return torch.lerp(kept[below], kept[below + 1], at - below)


def _between(order: Tensor, ranks: Tensor) -> Tensor:
    """Return the number between the last of `ranks` so many of descending scores and the next one."""
    last = len(order) - 1
    return (order[(ranks - 1).clamp(0, last)] + order[ranks.clamp(0, last)]) / 2
