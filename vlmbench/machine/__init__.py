"""The machine: GPU, host, clocks, installed code, and what the device can do at most."""
