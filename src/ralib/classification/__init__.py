"""Classification from scratch by a statistical model (ML2D) with CTF: seeding, E-step, M-step, schedule, verdict."""
