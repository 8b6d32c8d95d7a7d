"""What was found, in English: all sentences of reports live here."""
