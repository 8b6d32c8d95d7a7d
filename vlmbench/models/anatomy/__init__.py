"""Which module of a model is which stage: by rule, by watching one run, or by an override."""
