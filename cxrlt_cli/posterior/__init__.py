"""The posterior link: from the logit a loss produces to P(finding | image).

A pointwise loss with parts l1 (label 1) and l0 (label 0) and weights w1, w0 drives the logit z of images with posterior
eta to the minimum of ``eta w1 l1(z) + (1 - eta) w0 l0(z)``. There the derivative vanishes, so::

    eta / (1 - eta) = w0 l0'(z) / (-w1 l1'(z))

The right-hand side needs nothing but the loss's own gradient. It is tabulated per class, in log-odds, and stored with
the weights: prediction needs neither the loss nor its plugin.
"""

from cxrlt_cli.posterior.gradients import derive
from cxrlt_cli.posterior.link import Link, link_tensors, posterior_of, read_link
from cxrlt_cli.posterior.smoothing import unsmoothed

__all__ = ["Link", "derive", "link_tensors", "posterior_of", "read_link", "unsmoothed"]
