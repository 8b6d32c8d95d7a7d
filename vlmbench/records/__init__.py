"""Records: what is measured is kept, row by row."""
