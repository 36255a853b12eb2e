"""The three stages of a run, each with its order of work. A stage knows all that it needs, and no other stage."""
