"""`ray job submit --working-dir . -- python jobs/doctor.py ...`: the arguments of `fer-scale doctor`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fer_scale.cli import job

if __name__ == "__main__":
    job("doctor")
