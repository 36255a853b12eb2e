"""What a model scores on held-out data, and what it answers."""
