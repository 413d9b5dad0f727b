"""Self-checks of the exercises: a student can tell alone whether an answer is right, and why not.

Each check prints one line. An answer left at ``...`` is reported as not given yet, so that a
notebook with open exercises still runs from top to bottom.
"""

from collections.abc import Callable

import numpy as np
import torch


def number(answer: object, expected: float, *, within: float, hint: str = "") -> bool:
    """Check one number, in any form that converts to a float (0-d tensor, array, int, str).

    Args:
        within: largest absolute error accepted.
        hint: what to think about when the answer is off.
    """
    if answer is ...:
        return _open()
    try:
        value = float(answer)
    except (TypeError, ValueError):
        return _wrong(f"expected one number, got {type(answer).__name__} {answer!r}", hint)
    if not abs(value - expected) <= within:  # also catches NaN
        size = "too large" if value > expected else "too small" if value < expected else "no number"
        return _wrong(f"{value:.4g} is {size}", hint)
    return _right(f"{value:.4g}")


def array(answer: object, expected: torch.Tensor, *, within: float, hint: str = "") -> bool:
    """Check an array of numbers; lists, numpy arrays and tensors of any float type are accepted.

    Axes of length one are ignored; ``within`` bounds the largest absolute error.
    """
    if answer is ...:
        return _open()
    try:
        got = np.asarray(torch.as_tensor(answer).detach().cpu(), dtype=np.float64).squeeze()
    except (TypeError, ValueError, RuntimeError):
        return _wrong(f"expected an array of numbers, got {type(answer).__name__}", hint)
    want = np.asarray(expected.detach().cpu(), dtype=np.float64).squeeze()
    if got.shape != want.shape:
        return _wrong(f"expected shape {want.shape}, got {got.shape}", hint)
    error = np.abs(got - want).max()
    if not error <= within:
        return _wrong(f"the largest difference is {error:.3g}, accepted {within:.3g}", hint)
    return _right(f"largest difference {error:.1e}")


def function(
    answer: object, reference: Callable, cases: list[tuple], *, within: float, hint: str = ""
) -> bool:
    """Check a function against ``reference`` on ``cases``, each a tuple of arguments."""
    if answer is ...:
        return _open()
    if not callable(answer):
        return _wrong(f"expected a function, got {type(answer).__name__}", hint)
    for i, case in enumerate(cases):
        got, want = answer(*case), torch.as_tensor(reference(*case))
        if got is None or got is ...:
            return _open() if i == 0 else _wrong(f"case {i}: the function returns nothing", hint)
        got = torch.as_tensor(got)
        if got.squeeze().shape != want.squeeze().shape:
            shapes = f"expected {tuple(want.shape)}, got {tuple(got.shape)}"
            return _wrong(f"case {i}: shape: {shapes}", hint)
        error = (got.cpu().double().squeeze() - want.cpu().double().squeeze()).abs().max().item()
        if not error <= within:
            return _wrong(f"case {i}: largest difference {error:.3g}, accepted {within:.3g}", hint)
    return _right(f"{len(cases)} cases agree")


def choice(answer: object, expected: str, options: dict[str, str]) -> bool:
    """Check a multiple choice; ``options`` maps each letter to why it is right or wrong."""
    if answer is ...:
        return _open()
    letter = str(answer).strip().lower().rstrip(".)")
    if letter not in options:
        return _wrong(f"expected one of {', '.join(options)}, got {answer!r}", "")
    if letter != expected:
        return _wrong(letter, options[letter])
    return _right(options[letter])


def _open() -> bool:
    print("Not answered yet: replace the ... above and run the cell again.")
    return False


def _right(detail: str) -> bool:
    print(f"Right: {detail}")
    return True


def _wrong(detail: str, hint: str) -> bool:
    print(f"Not yet: {detail}." + (f" {hint}" if hint else ""))
    return False
