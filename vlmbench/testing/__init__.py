"""Known answers to test with: a server that replays planted streams."""
