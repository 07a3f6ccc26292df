"""The built-in losses, each with options that change what it does."""

from __future__ import annotations

import copy

from loss_batches import LOPSIDED, STATS, batch
from torch import nn

from cxrlt_plugins.losses import ap, asl, bce, cb_focal, db, focal, hill, ldam, logit_adjusted, ral, two_way, wbce

#: Sums over entries.
POINTWISE = {
    "bce": bce.build(STATS),
    "asl": asl.build(STATS),
    "asl-no-clip": asl.build(STATS, gamma_neg=2, gamma_pos=0.5, clip=0),
    "asl-root": asl.build(STATS, gamma_neg=0.5, gamma_pos=0.5, clip=0.05),
    "asl-clip-only": asl.build(STATS, gamma_neg=0, gamma_pos=0, clip=0.05),
    "ldam": ldam.build(STATS),
    "ldam-soft": ldam.build(STATS, max_margin=1.0, scale=3.0),
    "wbce": wbce.build(STATS),
    "wbce-lopsided": wbce.build(LOPSIDED, power=1, cap=None),
    "focal": focal.build(STATS),
    "focal-root": focal.build(STATS, gamma=0.5),
    "cb-focal": cb_focal.build(STATS),
    "logit-adjusted": logit_adjusted.build(STATS),
    "logit-adjusted-lopsided": logit_adjusted.build(LOPSIDED, tau=2),
    "hill": hill.build(STATS),
    "hill-sharp": hill.build(STATS, lamb=2.5, margin=0.5, gamma=1),
    "ral": ral.build(STATS),
    "ral-plain": ral.build(STATS, gamma_neg=0, clip=0, poly1=0.5, poly2=0.5, lamb=None),
    "ral-other": ral.build(STATS, gamma_neg=0.5, gamma_pos=0.5, poly1=-1, poly2=1, lamb=2),
}
#: Losses in which entries depend on each other.
RANKING = {
    "db": db.build(STATS),
    "db-focal": db.build(STATS, gamma=2),
    "db-lopsided": db.build(LOPSIDED),
    "two-way": two_way.build(STATS),
    "two-way-sharp": two_way.build(STATS, pos_temperature=0.5, neg_temperature=0.5),
    "ap": ap.build(STATS),
    "ap-sharp": ap.build(STATS, tau=0.1, memory=0, negatives=0),
    "ap-bce": ap.build(STATS, bce=0.5),
}


def seasoned(loss: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with what it remembers of two batches where it remembers any."""
    made = copy.deepcopy(loss)
    for seed in (7, 8):
        made(*batch(seed=seed))
    return made.eval()
