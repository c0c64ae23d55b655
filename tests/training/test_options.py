"""Command-line options: help, defaults and incompatible combinations."""

import pytest

from training.options import build_parser, parse_options

REQUIRED = ["--dataset", "owner/name", "--output_dir", "run"]
ACTIONS = [action for action in build_parser()._actions if action.option_strings != ["-h", "--help"]]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.dest)
def test_every_option_has_help_with_its_default(action):
    shown = build_parser()._get_formatter()._expand_help(action)
    assert shown and shown.count("default") == (0 if action.required else 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--resume --overwrite", "exclude each other"),
        ("--scale 2 1", "--scale MIN is larger than MAX"),
        ("--size_schedule 0:96,0.5:128 --image_size 64", "ends at 128 pixels"),
        ("--size_schedule 0.5:96", "must start at progress 0"),
        ("--feature_weight 1", "needs a --teacher"),
        ("--teacher_cache 4", "needs a --teacher"),
        ("--push_to_hub", "needs --hub_model_id"),
        ("--hub_model_id owner/name", "need --push_to_hub"),
    ],
)
def test_incompatible_options_are_refused(given, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_options([*REQUIRED, *given.split()])
    assert end.value.code == 2 and message in capsys.readouterr().err
