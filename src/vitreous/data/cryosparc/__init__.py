"""Conversion between cryoSPARC tables and RELION documents."""
