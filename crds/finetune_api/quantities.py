"""Kubernetes quantities as numbers, and numbers of bytes as quantities."""

UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}


def bytes_of(quantity: str) -> int:
    """`24Gi` → 25769803776. `quantity` has passed the schema's pattern."""
    number = quantity.rstrip("mkMGTPi")
    return int(float(number) * (UNITS | BINARY)[quantity[len(number) :]])


def gibibytes(count: int) -> str:
    """`11.2 GiB`."""
    return f"{count / (1 << 30):,.1f} GiB"
