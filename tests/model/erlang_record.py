"""What real Erlang/OTP does with the cases of erlang_cases.py.

    PYTHONPATH=. python tests/model/erlang_record.py --seed 1 --count 280      # writes erlang/recorded.ndjson anew

needs `erl` and `erlc` (Debian: erlang-base). After each step the recorder, erlang/supervisor_recorder.erl, waits until
nothing happens any more before it looks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from erlang_cases import make

HERE = Path(__file__).resolve().parent / "erlang"
RECORDED = HERE / "recorded.ndjson"


def term(value: Any) -> str:
    """JSON as an Erlang term: strings are atoms, lists are tuples."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, dict):
        return "#{" + ",".join(f"{term(key)} => {term(one)}" for key, one in value.items()) + "}"
    return "{" + ",".join(map(term, value)) + "}"


def many(values: Any) -> str:
    return "[" + ",".join(term(value) if not isinstance(value, str) else value for value in values) + "]"


def fails_term(fails: dict[str, list[Any]]) -> str:
    return "#{" + ",".join(f"{term(id)} => {many([term(one) for one in row])}" for id, row in fails.items()) + "}"


def tree_term(tree: dict[str, Any]) -> str:
    plain = {key: tree[key] for key in ("id", "strategy", "intensity", "auto", "template") if key in tree}
    return f"{term(plain)[:-1]},children => {many([child_term(child) for child in tree['children']])}}}"


def child_term(child: dict[str, Any]) -> str:
    plain = {key: value for key, value in child.items() if key != "sup"}
    return f"{term(plain)[:-1]},sup => {tree_term(child['sup'])}}}" if "sup" in child else term(plain)


def step_term(step: dict[str, Any]) -> str:
    fails = fails_term(step["fails"])
    if step["do"] == "exit":
        return f"{{exit,{term(step['id'])},{term(step['reason'])},{fails}}}"
    if step["do"] == "burst":
        return f"{{burst,{term(step['super'])},{many(step['ends'])},{fails}}}"
    if step["do"] == "stop":
        return f"{{stop,{term(step['super'])},{term(step['reason'])},{fails}}}"
    return f"{{ask,{term(step['super'])},{term(step['verb'])},{term(step['what'])},{fails}}}"


def case_term(case: dict[str, Any]) -> str:
    steps = many([step_term(step) for step in case["steps"]])
    return f"#{{tree => {tree_term(case['tree'])},fails => {fails_term(case['fails'])},steps => {steps}}}."


def record(cases: list[dict[str, Any]]) -> list[Any]:
    """What OTP does with each case."""
    with tempfile.TemporaryDirectory() as place:
        source = str(HERE / "supervisor_recorder.erl")
        subprocess.run(["erlc", "-o", place, source], check=True, timeout=120)
        asked, told = Path(place, "cases"), Path(place, "told")
        asked.write_text("\n".join(map(case_term, cases)) + "\n")
        run = f'supervisor_recorder:main("{asked}", "{told}").'
        command = ["erl", "+S", "1:1", "-noshell", "-pa", place, "-eval", run]
        environment = os.environ | {"ERL_CRASH_DUMP_BYTES": "0"}
        subprocess.run(command, check=True, timeout=150, stdin=subprocess.DEVNULL, env=environment)
        return [json.loads(line) for line in told.read_text().splitlines()]


def why_not() -> str | None:
    """Why there is no recording here; None: there can be."""
    missing = [name for name in ("erl", "erlc") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} on this machine (Debian package: erlang-base)" if missing else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Records what real Erlang/OTP does with random supervision trees.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=280)
    options = parser.parse_args()
    cases = [make(seed) for seed in range(options.seed, options.seed + options.count)]
    rows = [{"case": case, "told": told} for case, told in zip(cases, record(cases), strict=True)]
    RECORDED.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


if __name__ == "__main__":
    main()
