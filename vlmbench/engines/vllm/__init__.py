"""``runtime=vllm``: vLLM in this process, its stages on the same timeline. Nothing of vLLM is imported before it is asked for."""
