"""Files to arrays and tables: MRC, STAR, cryoSPARC, CTFFIND4, atomic models, checkpoints."""
