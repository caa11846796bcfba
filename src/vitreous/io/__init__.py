"""Bytes to tables and arrays: MRC, STAR, CTFFIND4 text, atomic models, checkpoints."""
