"""`make demo`: run a clean suite, a suite with common mistakes, and five causes of a lower accuracy."""

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
    "running statistics moved by an earlier run": {"model-changed"},
    "one tensor missing in the checkpoint": {"model-changed"},
    "images stored as JPEG": {"inputs-changed"},
    "Normalize with other statistics": {"preprocessing-changed", "inputs-changed"},
}
LOST = {f"test_accuracy[{cause}]": rules | {"outputs-changed"} for cause, rules in CAUSES.items()}

Violations = list[dict[str, Any]]


def main() -> int:
    show("""
        1. Five guarded tests run a small CNN that classifies handwritten digits. All of them are correct.
        See the last section of the output: the guard saw every forward and reports no violations.
    """)
    clean = run("test_clean.py", HERE)
    show("""
        2. The same CNN, and six common mistakes. Without the guard all of these tests pass.
        Each failure names the broken rule, the module or tensor, the line, and the fix.
        One test is correct and passes, but its accuracy is 95 % instead of 99 %,
        because the first mistake changed the model that both tests share.
    """)
    mistakes = run("test_mistakes.py", HERE)
    show("""
        3. Five causes of a lower accuracy. The first run locks the validated model, inputs, preprocessing and outputs.
        The second run breaks the evaluation in five ways, and each test reports the cause.
    """)
    with TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(HERE, Path(folder, "digits"), ignore=shutil.ignore_patterns("__*__")))
        run("test_lost_accuracy.py", copied, "--evalmode-update-lock")
        lost = run("test_lost_accuracy.py", copied, "--inject")
    show(table(lost))

    reported = mistakes | lost
    wrong = [f"{name} should be clean; reported: {sorted(rules(broken))}" for name, broken in clean.items() if broken]
    wrong += [
        f"{name} should break {sorted(expected)}; reported: {sorted(rules(reported.get(name, [])))}"
        for name, expected in (MISTAKES | LOST).items()
        if rules(reported.get(name, [])) != expected
    ]
    wrong += [
        f"{name} should name a cause: {violation['message']}"
        for name in LOST
        for violation in reported.get(name, [])
        if "cause not recognized" in violation["message"]
    ]
    show(
        "\n".join(wrong)
        or f"All {len(clean)} clean tests passed, all {len(MISTAKES)} mistakes were reported, "
        f"and all {len(CAUSES)} causes of a lower accuracy were named."
    )
    return 1 if wrong else 0


def rules(broken: Violations) -> set[str]:
    return {violation["rule"] for violation in broken}


def table(lost: dict[str, Violations]) -> str:
    """Return a Markdown table of the lost accuracies and their messages, as shown in docs/lock/index.md."""
    lines = ["| what went wrong | accuracy | what the test says |", "|---|---|---|"]
    for cause in CAUSES:
        broken = lost.get(f"test_accuracy[{cause}]", [])
        messages = "; ".join(f"`{v['rule']}`: {v['message']}" for v in broken if v["rule"] != "outputs-changed")
        change = next((v["message"] for v in broken if v["rule"] == "outputs-changed"), "")
        numbers = " → ".join(f"{float(number):.1%}" for number in re.findall(r"0\.\d+", change))
        lines.append(f"| {cause} | {numbers} | {messages} |")
    return "\n".join(lines)


def run(suite: str, where: Path, *more: str) -> dict[str, Violations]:
    """Run a suite without the configuration of this repository; return the violations of each test."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["-c", os.devnull, "--rootdir", str(where), f"--evalmode-report={report}", "--no-header", *more]
        plugins = [f"-pno:{name}" for name in ("randomly", "cacheprovider", "asyncio")]
        subprocess.run([sys.executable, "-m", "pytest", *options, *plugins, suite], cwd=where, check=False)
        tests = json.loads(report.read_text(encoding="utf-8"))["tests"]
    return {test["nodeid"].partition("::")[2]: test["violations"] for test in tests}


def show(text: str) -> None:
    lines = (line.strip() for line in text.strip().splitlines())
    print("\n" + "\n".join(lines) + "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
