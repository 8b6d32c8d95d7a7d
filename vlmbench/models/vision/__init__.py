"""How a target number of vision tokens is reached, through the model's own processor."""
