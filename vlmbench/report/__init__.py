"""Reports: tables and pages made of records."""
