"""One run directory: settings, measuring session, study, dry run, ending."""
