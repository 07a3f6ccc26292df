"""ML-Decoder: every class, or group of classes, asks the feature map its own question."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from cxrlt_cli.contracts import PluginFault

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class MLDecoder(nn.Module):
    """A transformer decoder of one layer without self-attention (Ridnik et al., arXiv 2111.12933).

    The places of the map are embedded; K queries attend to them and pass a feed-forward net, each step with its
    residual and layer normalisation. Group fully-connected: class c reads the answer of query ``floor(c K / C)`` with
    weights of its own, ``logit_c = w_c . answer + bias_c``. With K = C each class has a query, and permuting queries
    and weights together permutes the logits.

    The queries are random and stay fixed, which the authors found no worse than learnt ones. The last step is computed
    in float32 even under autocast: logits rounded to bfloat16 tie by the thousand.

    Args:
        width: features D.
        classes: logits C.
        groups: queries K.
        embedding: width E of queries and answers.
        heads: attention heads.
        feedforward: hidden width of the feed-forward net.
        dropout: share dropped in training: of the attention, and in each step.
    """

    spatial = True

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        groups: int,
        embedding: int = 768,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(width, embedding)
        self.register_buffer("queries", torch.randn(groups, embedding))
        self.register_buffer("group", torch.arange(classes) * groups // classes, persistent=False)
        self.before = nn.LayerNorm(embedding)
        self.attend = nn.MultiheadAttention(embedding, heads, dropout=dropout, batch_first=True)
        self.between = nn.LayerNorm(embedding)
        self.widen = nn.Linear(embedding, feedforward)
        self.narrow = nn.Linear(feedforward, embedding)
        self.after = nn.LayerNorm(embedding)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(classes, embedding).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> logits (B, C), float32 (the weights' type where that is wider)."""
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(self.weight.dtype)
        answers = self.answers(features)
        with torch.autocast(features.device.type, enabled=False):
            own = answers.to(self.weight.dtype)[:, cast("Tensor", self.group)]
            return (own * self.weight).sum(dim=2) + self.bias

    def answers(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> what each query finds in the map, (B, K, E)."""
        places = relu(self.embed(features.flatten(2).transpose(1, 2)))
        asked = self.before(cast("Tensor", self.queries)).expand(len(features), -1, -1)
        found, _ = self.attend(asked, places, places, need_weights=False)
        found = self.between(asked + self.dropout(found))
        thought = self.narrow(self.dropout(relu(self.widen(found))))
        answers: Tensor = self.after(found + self.dropout(thought))
        return answers

    def extra_repr(self) -> str:
        return f"groups={len(cast('Tensor', self.queries))}"


def build(
    width: int,
    stats: ClassStats,
    *,
    groups: int | None = None,
    embedding: int = 768,
    heads: int = 8,
    feedforward: int = 2048,
    dropout: float = 0.1,
) -> nn.Module:
    """ML-Decoder (arXiv 2111.12933): fixed queries attend to the feature map, one for each class or group of classes.

    Args:
        width: features D of the backbone.
        stats: gives the number of classes.
        groups: queries, at most one a class; null for one a class.
        embedding: width of queries and answers, a multiple of heads.
        heads: attention heads.
        feedforward: hidden width of the feed-forward net.
        dropout: share dropped in training, in [0, 1).

    Raises:
        PluginFault: a number is out of range.
    """
    classes = len(stats.names)
    wrong = {
        f"groups is {groups}": groups is not None and not 1 <= groups <= classes,
        f"embedding is {embedding} with {heads} heads": heads < 1 or embedding < 1 or embedding % max(heads, 1),
        f"feedforward is {feedforward}": feedforward < 1,
        f"dropout is {dropout}": not 0 <= dropout < 1,
    }
    for what in (what for what, found in wrong.items() if found):
        cure = f"groups is 1 to {classes} or null, embedding a multiple of heads, feedforward > 0, dropout in [0, 1)."
        raise PluginFault(what, where="head ml-decoder", cure=cure)
    return MLDecoder(
        width,
        classes,
        groups=groups or classes,
        embedding=embedding,
        heads=heads,
        feedforward=feedforward,
        dropout=dropout,
    )
