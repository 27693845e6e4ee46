"""Makes `tables.json` from `grammar.lark`, by lark: ``python -m eecompile.dsl.table_making``.

For those who change the language. What reads it needs no parser generator.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["make_tables"]

#: What single values, given on the command line, can be parsed as, beside a whole file.
_FRAGMENTS = (
    "call",
    "deadline_value",
    "endpoints",
    "frequency_items",
    "frequency_list",
    "frequency_value",
    "guard_value",
    "input_type",
    "limit",
    "name",
    "number",
    "numbers",
    "offload_value",
    "quantity",
    "range",
    "rule",
    "samples_value",
    "string",
    "value",
)


def make_tables() -> str:
    """The text of `tables.json`: LALR(1) tables as `eecompile.dsl.tables` describes them.

    Numbers of states and rules depend on the grammar alone.
    """
    import lark

    text = resources.files("eecompile.dsl").joinpath("grammar.lark").read_text(encoding="utf-8")
    made: Any = lark.Lark(
        text,
        parser="lalr",
        start=["file", *_FRAGMENTS],
        maybe_placeholders=True,
        keep_all_tokens=True,
    )
    table = made.parser.parser._parse_table
    order = _states_in_order(table)
    rules = sorted(map(_rule, made.rules))
    states = []
    for state in order:
        row = {"$END": 0} if state in table.end_states.values() else {}
        for symbol, (action, to) in sorted(table.states[state].items()):
            shifts = action.name == "Shift"
            row[symbol] = order[to] if shifts else -1 - rules.index(_rule(to))
        states.append(row)
    return _written(
        {
            "terminals": [
                [terminal.name, terminal.pattern.type, terminal.pattern.value, terminal.priority]
                for terminal in made.parser.lexer.root_lexer.terminals
            ],
            "ignored": sorted(made.ignore_tokens),
            "rules": rules,
            "starts": [[name, order[state]] for name, state in sorted(table.start_states.items())],
            "states": states,
        }
    )


def _states_in_order(table: Any) -> dict[Any, int]:
    """State -> number, in the order they are come to."""
    order: dict[Any, int] = {}
    waiting = [state for _, state in sorted(table.start_states.items())]
    for state in waiting:
        if state not in order and state in table.states:
            order[state] = len(order)
            row = sorted(table.states[state].items())
            waiting += [to for _, (action, to) in row if action.name == "Shift"]
    return order


def _rule(rule: Any) -> list[Any]:
    """Name, symbols, how many parts are left out before each and at the end, whether it may go."""
    left_out = "".join(str(int(gap)) for gap in rule.options.empty_indices)
    gaps = [len(run) for run in left_out.split("0")] if left_out else [0] * len(rule.expansion)
    gaps += [0] * (len(rule.expansion) + 1 - len(gaps))
    symbols = [str(symbol.name) for symbol in rule.expansion]
    return [str(rule.origin.name), symbols, gaps, bool(rule.options.expand1)]


def _written(tables: dict[str, list[Any]]) -> str:
    """JSON with a line for each entry, so that changes can be read."""
    parts = [
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, entries)) + "\n]"
        for name, entries in tables.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    Path(__file__).with_name("tables.json").write_text(make_tables(), encoding="utf-8")
