"""What calibration data have to be before anything is fitted on them."""

from __future__ import annotations

from math import ceil, log

import numpy as np

from eecompile.diagnostics import Diagnostic, Diagnostics
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget

__all__ = ["LEAST_SAMPLES", "check_record"]

#: Below this many samples a mean cost has no normal error to leave a margin for.
LEAST_SAMPLES = 50


def check_record(
    record: CalibrateRecord, budget: Budget | None, confidence: float, *, folds: int = 1
) -> None:
    """Refuses data on which a fit would mean nothing.

    Args:
        record: with every exit's outputs.
        budget: as asked for; None where nobody did.
        confidence: with which it is to hold.
        folds: fits leave out one of so many parts, and see the others; 1 where they see all.

    Raises:
        CompileErrors: too few samples for any fit or for this budget, labels of one class only, or
            scores that are no finite numbers; all of it at once.
    """
    found = Diagnostics()
    count = len(record)
    fitted_on = count if folds == 1 else count - ceil(count / folds)
    least = LEAST_SAMPLES if folds == 1 else ceil(LEAST_SAMPLES * folds / (folds - 1))
    if fitted_on < LEAST_SAMPLES:
        why = "to fit a policy on" if folds == 1 else "to choose a rule on"
        found.error(
            "too-few-samples",
            f"Expected at least {least} calibration samples {why}, found {count}",
            notes=()
            if folds == 1
            else (f"{LEAST_SAMPLES} to fit it on, and the others to judge it by",),
        )
    elif budget is not None and budget.quantity == "accuracy_drop" and 0 < budget.limit < 1 / count:
        found.add(_too_strict(count, budget, confidence))
    classes = np.unique(record.labels)
    if len(classes) == 1:
        found.error(
            "one-class",
            f"All {count} calibration samples are of class {classes[0]}",
            help="calibrate on samples as they will be met: a policy fitted on these would "
            "save most by leaving at once, and be wrong about every other class",
        )
    scores = {"final": record.final, **record.logits}
    scores |= {f"{name} (class means)": means for name, means in record.class_means.items()}
    for name, values in scores.items():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            message = f"Scores of exit `{name}` are not finite in {len(bad)} calibration samples"
            found.error("bad-data", message, notes=(f"the first is sample {bad[0]}",))
    found.raise_errors()


def _too_strict(count: int, budget: Budget, confidence: float) -> Diagnostic:
    """A single wrong answer more breaks the budget: nothing can be told from so few samples."""
    # With none lost of so many, the loss is below the limit with that confidence.
    needed = ceil(log(1 - confidence) / log(1 - min(budget.limit, 0.5)))
    return Diagnostic(
        "too-few-samples",
        f"{count} calibration samples cannot show whether `{budget}` is kept",
        budget.span,
        f"a single one of them is {100 / count:.2g} %",
        help=f"give at least {needed} samples, which show it with {confidence:.0%} confidence, "
        "or allow more",
    )
