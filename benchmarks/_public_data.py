"""Files of public data, in the folder --data: what several benchmarks simulate from."""

from __future__ import annotations

BETAGAL = "models/5a1a.cif.gz"
RIBOSOME, RIBOSOME_APIX = "maps/ribosome70S_65.mrc", 5.0  # Å
CTF = "empiar10061/ctffind_1539.txt"
BACKGROUND = "empiar10061/background_192.mrcs"
