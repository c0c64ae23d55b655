"""Every command has a help page, and rejects a number out of range with one sentence that names the option."""

import argparse
import importlib

import pytest

from dataset_script.arguments import not_negative, positive, share, whole_number
from tests.parsers import actions, parser_of

TRAINER = "train_accelerate --dataset d --output_dir o"
OUT_OF_RANGE = [
    "dataset_script.__main__ synthetic out --per_class 0",
    "dataset_script.__main__ synthetic out --seed -1",
    f"dataset_script.__main__ build raw out --seed {2**32}",
    f"{TRAINER} --mixup -1",
    f"{TRAINER} --weight_decay nan",
    f"{TRAINER} --seed 10000000000",
    f"{TRAINER} --learning_rate fast",
    "hub_model.__main__ robustness model data --images -3",
    "hub_model.__main__ ood model data --each 0",
    "hub_model.__main__ score images --model m --out o --threads 0",
    "space.__main__ --port 99999",
]
STUDIES = "calibrate ood shift robustness input-size prevalence label-issues"
COMMANDS = {
    "dataset_script.__main__": "synthetic build push",
    "hub_model.__main__": f"build average check push score {STUDIES}",
    "local_hub.__main__": "",
    "space.__main__": "",
    "train_accelerate": "",
}


@pytest.mark.parametrize(
    ("module", "command"),
    [(m, [c]) for m in COMMANDS for c in COMMANDS[m].split()] + [(m, []) for m in COMMANDS],
)
def test_every_command_has_a_help_page(module, command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module(module).main([*command, "--help"])
    assert exit_info.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: ")
    if not command:
        assert all(name in page for name in COMMANDS[module].split())


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_has_help_that_names_its_default(module):
    for parser, action in actions(parser_of(module)):
        automatic = issubclass(parser.formatter_class, argparse.ArgumentDefaultsHelpFormatter)
        assert action.help, f"{parser.prog} {action.dest} has no help"
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS) and not automatic:
            assert "default" in action.help, f"{parser.prog} {action.dest} does not name its default"


@pytest.mark.parametrize("command", OUT_OF_RANGE)
def test_a_number_out_of_range_is_rejected_by_name(command, capsys):
    module, *arguments, flag, number = command.split()
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module(module).main([*arguments, flag, number])
    assert exit_info.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert flag in last and number in last and "must be" in last


def test_numbers_in_range_are_accepted():
    assert [whole_number(0, 5)(text) for text in ("0", "5")] == [0, 5]
    assert [not_negative("0"), positive("1e-3"), share("1")] == [0.0, 0.001, 1.0]
