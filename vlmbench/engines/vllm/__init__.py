"""``runtime=vllm``: vLLM in this process, its stages on the same timeline; imported only where asked for."""
