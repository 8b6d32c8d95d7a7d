"""Figures: DataFrame in, seaborn axes out; one function a figure."""
