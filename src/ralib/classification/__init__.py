"""Classification from scratch by a statistical model (ML2D) with CTF: initialisation, EM, schedule, verdict."""
