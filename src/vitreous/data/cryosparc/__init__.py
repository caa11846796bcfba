"""cryoSPARC tables as particles."""
