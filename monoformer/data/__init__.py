"""Documents from the world, endless and resumable. Knows no tokens, no rows and no model.

Invariant: document number n of a source depends on its configuration, split and seed alone, so a run that stops after n
documents goes on with document n.
"""
