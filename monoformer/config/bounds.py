"""Numbers within bounds. Comparisons alone would let nan pass; these refuse it, and what is infinite."""

import math


def check_numbers(
    config: object,
    *names: str,
    room: str,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Refuse fields that are not finite numbers with least <= number <= most and above < number < below.

    Of a field that is a tuple every number counts. `room` stands before the names in the error, as users type them.
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not (math.isfinite(number) and least <= number <= most and above < number < below):
                raise ValueError(f"{room}.{name} must be {_said(least, above, most, below)}, but is {value}")


def check_weights(config: object, *names: str, room: str) -> None:
    """Refuse relative weights that are negative or not finite, or all 0."""
    check_numbers(config, *names, room=room, least=0)
    if not any(getattr(config, name) for name in names):
        raise ValueError(f"{', '.join(f'{room}.{name}' for name in names)} are all 0; give one of them a weight")


def _said(least: float, above: float, most: float, below: float) -> str:
    if min(most, below) < math.inf:
        low = f"({above:g}" if above > -math.inf else f"[{least:g}"
        return f"in {low}, " + (f"{below:g})" if below < math.inf else f"{most:g}]")
    if above > -math.inf:
        return f"above {above:g}"
    if least > -math.inf:
        return "0 or more" if least == 0 else f"at least {least:g}"
    return "a finite number"
