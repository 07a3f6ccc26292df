"""Decisions: calibration and thresholds of a model together, fitted, cross-fitted by patient, stored by class name.

``fit_decisions`` learns them from one set of images, usually dev. Judged on that same set they flatter themselves, so
there ``cross_fitted`` is asked instead: each patient is judged by what the other patients taught.

**Another prevalence.** Posteriors hold for the share of positives they were calibrated on. Where only that share
changes, and not what a finding looks like, the log-odds move by ``logit(new) - logit(old)``. A prevalence that is not
known can be estimated from the posteriors of the images at hand (Saerens, Latinne and Decaestecker 2002: EM).
"""

from cxrlt_cli.decisions.file import read_decisions, write_decisions
from cxrlt_cli.decisions.fitting import SKETCH, CrossFitted, Decisions, cross_fitted, fit_decisions
from cxrlt_cli.decisions.folds import patient_codes, patient_folds
from cxrlt_cli.decisions.prevalence import ENOUGH_TO_ESTIMATE, check_enough, estimate_prevalence, left_open

__all__ = [
    "ENOUGH_TO_ESTIMATE",
    "SKETCH",
    "CrossFitted",
    "Decisions",
    "check_enough",
    "cross_fitted",
    "estimate_prevalence",
    "fit_decisions",
    "left_open",
    "patient_codes",
    "patient_folds",
    "read_decisions",
    "write_decisions",
]
