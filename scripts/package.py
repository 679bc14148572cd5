"""Build the source distribution, the wheel from it, and install that wheel: ``make package``.

The wheel goes into an environment of its own; its dependencies are those of the environment that runs this, so that
nothing is downloaded twice. What is checked is what a user of the wheel would miss: the command, the pages, the types.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import fer_scale

ROOT = Path(__file__).resolve().parents[1]
DIST, HOME = ROOT / "dist", ROOT / "build/installed"
CHECK = """
import sys
from importlib.metadata import distribution
from importlib.resources import files

import fer_scale
from fer_scale import report
from fer_scale.verbs.serve import web

assert fer_scale.__file__.startswith(sys.prefix), fer_scale.__file__
package = files("fer_scale")
for name in sys.argv[1:]:
    assert package.joinpath(name).is_file(), f"the wheel lacks {name}"
assert distribution("fer_scale").metadata["License-Expression"] == "Apache-2.0"
"""


def run(*command: str | Path) -> str:
    """Run a command outside of the checkout, so that only what is installed is found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=HOME.parent, env=environment, check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


def main() -> None:
    """Leave with an error where the wheel cannot be built, installed or used."""
    HOME.parent.mkdir(exist_ok=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,) = DIST.glob(f"fer_scale-{fer_scale.__version__}-*.whl")
    venv.create(HOME, clear=True, with_pip=False)
    (packages,) = HOME.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = HOME / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed", wheel)
    wanted = [
        str(path.relative_to(ROOT / "fer_scale"))
        for path in (ROOT / "fer_scale").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    run(python, "-c", CHECK, *wanted)
    said = run(HOME / "bin/fer-scale", "--version").strip()
    if said != f"fer-scale {fer_scale.__version__}":
        sys.exit(f"the installed command says {said!r}")
    print(f"{said}: {wheel.name} holds all {len(wanted)} files of the package, and works")


if __name__ == "__main__":
    main()
