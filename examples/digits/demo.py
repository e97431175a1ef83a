"""What `make demo` shows: a clean suite, the mistakes that people make, and what became of a lost accuracy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent

MISTAKES = {
    "test_faded_scans": {"train-mode", "state-mutated"},
    "test_confidence": {"grad-mode"},
    "test_restored_model": {"train-mode", "state-mutated"},
    "test_functional_dropout": {"random-forward"},
    "test_validation_loss": {"grad-mode", "state-mutated"},
    "test_one_submodule": {"train-mode"},
}

CAUSES = {
    "forgotten eval()": {"train-mode", "state-mutated"},
    "running statistics moved by it": {"model-changed"},
    "one tensor missing in the checkpoint": {"model-changed"},
    "images stored as JPEG": {"inputs-changed"},
    "Normalize with other statistics": {"preprocessing-changed", "inputs-changed"},
}
LOST = {f"test_accuracy[{cause}]": rules | {"outputs-changed"} for cause, rules in CAUSES.items()}

Violations = list[dict[str, Any]]


def main() -> int:
    tell("""
        1. A small CNN reads handwritten digits, and five guarded tests use it as they should.
        Look for the last section: the guard saw every forward, and has nothing to say.
    """)
    clean = run("test_clean.py", HERE)
    tell("""
        2. The same CNN, and six mistakes in how it is run. Without the guard all of these tests pass.
        Each failure names the rule that was broken, the module or tensor, the line to look at and what to do there.
        One test passes, and nothing is wrong with it; but it reads 95 % of the digits where it should read 99 %,
        because the first mistake changed the model that both share.
    """)
    found = run("test_mistakes.py", HERE)
    tell("""
        3. An accuracy that was lost, five times, each time for another reason. What was validated is locked first;
        then the same evaluation runs with something wrong in it, and says what that is.
    """)
    with TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(HERE, Path(folder, "digits"), ignore=shutil.ignore_patterns("__*__")))
        run("test_lost_accuracy.py", copied, "--evalmode-update-lock")
        lost = run("test_lost_accuracy.py", copied, "--inject")
    tell(table(lost))

    wrong = [f"{name} should be clean; found: {sorted(rules(broken))}" for name, broken in clean.items() if broken]
    wrong += [
        f"{name} should break {sorted(expected)}; found: {sorted(rules(found.get(name, [])))}"
        for name, expected in (MISTAKES | LOST).items()
        if rules((found | lost).get(name, [])) != expected
    ]
    tell(
        "\n".join(wrong)
        or f"All {len(clean)} clean tests passed, all {len(MISTAKES)} mistakes were found, "
        f"and all {len(CAUSES)} causes of a lost accuracy were named."
    )
    return 1 if wrong else 0


def rules(broken: Violations) -> set[str]:
    return {violation["rule"] for violation in broken}


def table(lost: dict[str, Violations]) -> str:
    """What was lost and what was said of it, as the README shows it."""
    lines = ["| what went wrong | accuracy | what the test says |", "|---|---|---|"]
    for cause in CAUSES:
        broken = lost.get(f"test_accuracy[{cause}]", [])
        said = "; ".join(f"`{v['rule']}`: {v['message']}" for v in broken if v["rule"] != "outputs-changed")
        moved = next((v["message"] for v in broken if v["rule"] == "outputs-changed"), "")
        numbers = " → ".join(f"{float(number):.1%}" for number in re.findall(r"0\.\d+", moved))
        lines.append(f"| {cause} | {numbers} | {said} |")
    return "\n".join(lines)


def run(suite: str, where: Path, *more: str) -> dict[str, Violations]:
    """Run a suite on its own settings, not this repository's; return what each of its tests broke."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["-c", os.devnull, "--rootdir", str(where), f"--evalmode-report={report}", "--no-header", *more]
        plugins = [f"-pno:{name}" for name in ("randomly", "cacheprovider", "asyncio")]
        subprocess.run([sys.executable, "-m", "pytest", *options, *plugins, suite], cwd=where, check=False)
        tests = json.loads(report.read_text(encoding="utf-8"))["tests"]
    return {test["nodeid"].partition("::")[2]: test["violations"] for test in tests}


def tell(text: str) -> None:
    lines = (line.strip() for line in text.strip().splitlines())
    print("\n" + "\n".join(lines) + "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
