"""What every stage stands on: its process and how that ends, its workspace, its progress."""
