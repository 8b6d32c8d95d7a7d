"""Measures a vision-language model behind any OpenAI-compatible chat server."""
