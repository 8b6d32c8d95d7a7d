"""Grids: runs as jobs of a scheduler or of this machine; the files of the runs are the truth, the scheduler second."""
