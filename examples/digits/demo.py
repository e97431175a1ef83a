"""What `make demo` shows: a suite whose inference is clean, and one with the mistakes that people make."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent

MISTAKES = {
    "test_faded_scans": {"train-mode", "state-mutated"},
    "test_confidence": {"grad-mode"},
    "test_restored_model": {"train-mode", "state-mutated"},
    "test_functional_dropout": {"random-forward"},
    "test_validation_loss": {"grad-mode", "state-mutated"},
    "test_one_submodule": {"train-mode"},
}


def main() -> int:
    tell("""
        1. A small CNN reads handwritten digits, and five guarded tests use it as they should.
        Look for the last section: the guard saw every forward, and has nothing to say.
    """)
    clean = run("test_clean.py")
    tell("""
        2. The same CNN, and six mistakes in how it is run. Without the guard all of these tests pass.
        Each failure names the rule that was broken, the module or tensor, the line to look at and what to do there.
        One test passes, and nothing is wrong with it; but it reads 95 % of the digits where it should read 99 %,
        because the first mistake changed the model that both share.
    """)
    found = run("test_mistakes.py")

    wrong = [f"{name} should be clean; found: {sorted(rules)}" for name, rules in clean.items() if rules]
    wrong += [
        f"{name} should break {sorted(rules)}; found: {sorted(found.get(name, ()))}"
        for name, rules in MISTAKES.items()
        if found.get(name) != rules
    ]
    tell("\n".join(wrong) or f"All {len(clean)} clean tests passed, and all {len(MISTAKES)} mistakes were found.")
    return 1 if wrong else 0


def run(suite: str) -> dict[str, set[str]]:
    """Run a suite on its own settings, not this repository's; return the rules that each of its tests broke."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["-c", os.devnull, "--rootdir", str(HERE), f"--evalmode-report={report}", "--no-header"]
        plugins = [f"-pno:{name}" for name in ("randomly", "cacheprovider", "asyncio")]
        subprocess.run([sys.executable, "-m", "pytest", *options, *plugins, suite], cwd=HERE, check=False)
        tests = json.loads(report.read_text(encoding="utf-8"))["tests"]
    return {
        test["nodeid"].partition("::")[2]: {violation["rule"] for violation in test["violations"]} for test in tests
    }


def tell(text: str) -> None:
    lines = (line.strip() for line in text.strip().splitlines())
    print("\n" + "\n".join(lines) + "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
