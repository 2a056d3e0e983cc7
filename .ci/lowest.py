"""The lowest version of each package that pyproject.toml allows, as constraints for pip.

What users install is held at its lower bound: the dependencies and every extra but `dev`, whose tools are at their
newest, since pip searches for hours for old ones that fit each other.

    python .ci/lowest.py > constraints.txt
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
lines = {*project["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])}
for requirement in sorted(map(Requirement, lines), key=lambda found: found.name):
    (lowest,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    print(f"{requirement.name}=={lowest}")
