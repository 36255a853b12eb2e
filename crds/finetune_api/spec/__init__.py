"""The `spec` of a FineTuneJob, a module for each of its stanzas. All of it together: `job_spec`."""
