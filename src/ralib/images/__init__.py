"""Mathematics of image stacks: masks, Fourier filters, CTF, FRC, normalisation, centring, rotation."""
