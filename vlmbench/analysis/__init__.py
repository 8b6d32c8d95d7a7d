"""Analysis: DataFrame in, DataFrame out. Usable from a notebook without a run; imports no torch."""
