"""A run on this machine: its folder, its mounts, and the processes of its stages."""
