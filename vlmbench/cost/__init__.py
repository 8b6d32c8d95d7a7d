"""Cost: FLOPs, bytes, roofline, device peaks."""
