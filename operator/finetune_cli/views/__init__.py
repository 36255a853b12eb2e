"""What is shown to people. Nothing here reads a cluster or a file."""
