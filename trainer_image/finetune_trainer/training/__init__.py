"""The one path that every run takes, from step to step. It knows no objective and no method by name."""
