"""What a run hands to others: its result, the files about it, and whether they are whole."""
