"""The contract between people, the operator and the trainer: every type that crosses one of those borders."""
