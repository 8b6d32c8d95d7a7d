"""Known answers to test with: for people who write probes, engines and models.

* :mod:`vlmbench.testing.planted`: a model whose stages take planted times, and a clock that only these move;
* :mod:`vlmbench.testing.shrink`: any configuration of transformers made tiny;
* :mod:`vlmbench.testing.tiny_models`, :mod:`vlmbench.testing.stage_checks`: every architecture tiny, and what must hold
  between its stages and a run;
* :mod:`vlmbench.testing.replay`: a server that replays planted streams.
"""
