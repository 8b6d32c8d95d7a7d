"""Methods that claim to save latency: ``attach(model)`` changes a loaded model, ``detach()`` undoes it.

A method is measured beside its baseline (:class:`~vlmbench.interventions.none.NoIntervention`) in one process; see
``docs/interventions.md``.
"""
