"""Numbers as people read them."""

MISSING = "–"


def duration(seconds: float | None) -> str:
    """`45 s`, `3 m 20 s`, `2 h 05 m`, `3 d 04 h`."""
    if seconds is None:
        return MISSING
    whole = max(0, round(seconds))
    for unit, below, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            rest = whole % size // {86400: 3600, 3600: 60, 60: 1}[size]
            return f"{whole // size} {unit} {rest:02} {below}"
    return f"{whole} s"


def size(count: int | None) -> str:
    """Bytes: `999 B`, `12.3 MB`."""
    return MISSING if count is None else f"{_scaled(count, ('', 'k', 'M', 'G', 'T'))}B"


def count(number: float | None) -> str:
    """Anything countable: `950`, `12.3 k`, `134.5 M`."""
    return MISSING if number is None else _scaled(number, ("", "k", "M", "G", "T")).rstrip()


def loss(value: float | None) -> str:
    """Four significant digits: a loss of 12.34 or of 0.001234."""
    return MISSING if value is None else f"{value:.4g}"


def share(value: float | None) -> str:
    """A share between 0 and 1, in percent."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(number) < 999.5:
            return f"{number:.0f} {unit}" if not unit or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} {units[-1]}"
