"""How texts write figures whose size is not known beforehand."""

from dfs_rl.evaluation.comparison_records import Spread

_DIGITS = 4
_SMALLEST = 1e-4
_MOST_DECIMALS = 8
_ROUNDING = 1e-9
"""Deviations up to this share of the mean are the computer's own."""
_MINUTE, _HOUR = 60, 3600


def number_text(value: float) -> str:
    """Return a figure with four digits that matter."""
    if value != 0 and abs(value) < _SMALLEST:
        return f"{value:.{_DIGITS}g}"
    return f"{value:,.{_decimals(value, _DIGITS)}f}"


def spread_text(value: Spread) -> str:
    """Return mean and deviation, both as exactly as two digits of the deviation are."""
    if value.deviation is None:
        return number_text(value.mean)
    if value.deviation <= _ROUNDING * abs(value.mean):
        return f"{number_text(value.mean)} ± 0"
    decimals = _decimals(value.deviation, 2)
    return f"{value.mean:,.{decimals}f} ± {value.deviation:,.{decimals}f}"


def _decimals(value: float, digits: int) -> int:
    """Return how many decimals show so many digits that matter."""
    if value == 0:
        return 0
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # of the rounded value
    return min(_MOST_DECIMALS, max(0, digits - 1 - exponent))


def setting_text(value: object) -> str:
    """Return a setting as a YAML file would have it, floats with four digits that matter."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(setting_text, value))}]"
    return str(value)


def duration_text(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{seconds / _MINUTE:.1f} minutes" if seconds >= _MINUTE else f"{seconds:.0f} seconds"
