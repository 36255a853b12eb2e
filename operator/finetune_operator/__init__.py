"""The operator: turns a FineTuneJob into Kubernetes objects, and what it observes into status."""
