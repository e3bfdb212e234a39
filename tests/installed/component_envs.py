"""Each component in a virtual environment of its own, with nothing but its own requirements file.

`python -m installed.component_envs FOLDER` makes them all, and tells what they hold as JSON.
"""

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parents[2]
REQUIREMENTS: Final = {
    "broker": ("broker.txt",),
    "frontend": ("frontend.txt",),
    "gpu_worker": ("torch.txt", "gpu_worker.txt"),
}
INSTALL_LIMIT_S: Final = 600.0
OURS: Final = "flux-server"
_SIZES: Final = """
import importlib.metadata, json
sizes = {}
for each in importlib.metadata.distributions():
    files = {file.locate().resolve() for file in each.files or ()}
    sizes[each.name] = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
print(json.dumps(sizes))
"""


@dataclass(frozen=True, slots=True)
class ComponentEnv:
    component: str
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self, wheel: Path) -> None:
        """Without pip, which is no part of it."""
        venv.create(self.folder, clear=True, with_pip=False)
        files = [f"-r{SOURCE / 'requirements' / name}" for name in REQUIREMENTS[self.component]]
        # What installs stands outside, so that nothing of it can be imported inside.
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-compile", "-qq"]
        for what in (files, ["--no-deps", str(wheel)]):
            subprocess.run([*pip, *what], check=True, timeout=INSTALL_LIMIT_S)

    def sizes_bytes(self) -> dict[str, int]:
        """By installed distribution, without compiled files."""
        done = subprocess.run([self.python, "-c", _SIZES], check=True, capture_output=True, text=True)
        sizes: dict[str, int] = json.loads(done.stdout)
        return sizes


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-qq", "-w", str(folder), str(SOURCE)]
    subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    folder = Path(sys.argv[1])
    wheel = build_wheel(folder / "wheel")
    sizes = {}
    for component in REQUIREMENTS:
        env = ComponentEnv(component, folder / component)
        env.make(wheel)
        sizes[component] = env.sizes_bytes()
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
