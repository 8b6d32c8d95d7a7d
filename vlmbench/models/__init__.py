"""Models: loading, anatomy, processors. torch and transformers are imported when a model is loaded, not before."""
