"""Engines other than transformers' generate(): what runs a request, behind one seam."""
