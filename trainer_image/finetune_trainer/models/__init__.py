"""Models in memory, and the machine under them. It knows no objective and no method."""
