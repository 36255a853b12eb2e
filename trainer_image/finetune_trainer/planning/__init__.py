"""What a run will take, before a weight is loaded: its batches, its steps, its memory."""
