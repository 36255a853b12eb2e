"""What is outside of the run: the hub, the web, the place of the result, and the forms of the files that lie there."""
