"""What each verb of the command line does, in the module of its name."""
