"""Number formats for figures of unknown magnitude."""

from dfs_rl.evaluation.comparison_records import Spread

_DIGITS = 4
_SMALLEST = 1e-4
_MOST_DECIMALS = 8
_ROUNDING = 1e-9  # largest deviation, relative to the mean, that counts as rounding error
_MINUTE, _HOUR = 60, 3600


def number_text(value: float) -> str:
    """Format a figure with four significant digits."""
    if value != 0 and abs(value) < _SMALLEST:
        return f"{value:.{_DIGITS}g}"
    return f"{value:,.{_decimals(value, _DIGITS)}f}"


def spread_text(value: Spread) -> str:
    """Format mean and deviation with the decimals of two significant digits of the deviation."""
    if value.deviation is None:
        return number_text(value.mean)
    if value.deviation <= _ROUNDING * abs(value.mean):
        return f"{number_text(value.mean)} ± 0"
    decimals = _decimals(value.deviation, 2)
    return f"{value.mean:,.{decimals}f} ± {value.deviation:,.{decimals}f}"


def _decimals(value: float, digits: int) -> int:
    """Return the number of decimals that shows ``digits`` significant digits."""
    if value == 0:
        return 0
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding
    return min(_MOST_DECIMALS, max(0, digits - 1 - exponent))


def setting_text(value: object) -> str:
    """Format a setting as in a YAML file, floats with four significant digits."""
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
    """Format a duration in seconds, minutes or hours, depending on its length."""
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{seconds / _MINUTE:.1f} minutes" if seconds >= _MINUTE else f"{seconds:.0f} seconds"
